"""``MultiQueryAttention`` stands in for ``hk.MultiHeadAttention``."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa import MultiQueryAttention

SAME = 1e-6  # the same arithmetic in another order, outputs of about one
EQUAL = 1e-5

N, H, D = 6, 4, 10
B, T, S = 2, 3, 5
W_INIT = hk.initializers.VarianceScaling(1.0)
B_INIT = hk.initializers.RandomNormal(0.5)  # a bias of zero would prove nothing

seeds = st.integers(0, 2**32 - 1)


def _transformed(cls, **options) -> hk.Transformed:
    def forward(query, key, value, mask=None):
        module = cls(N, H, w_init=W_INIT, b_init=B_INIT, **options)
        return module(query, key, value, mask)

    return hk.without_apply_rng(hk.transform(forward))


def _inputs(*leading: int, seed: int = 0) -> list[jax.Array]:
    draw = np.random.default_rng(seed)
    shapes = [(*leading, T, D), (*leading, S, D), (*leading, S, D)]
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


def _mask(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    """Returns a random mask; every query sees the first key."""
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[..., 0] = True
    return jnp.asarray(mask)


ours = functools.partial(_transformed, MultiQueryAttention, num_kv_heads=N)
haikus = functools.partial(_transformed, hk.MultiHeadAttention)

OPTIONS = {
    "default": {},
    "value_size": {"value_size": 7},
    "model_size": {"model_size": 11},
    "both_sizes": {"value_size": 3, "model_size": 9},
    "no_bias": {"with_bias": False},
    "named": {"name": "attend"},
}
every_option = pytest.mark.parametrize(
    "options", OPTIONS.values(), ids=OPTIONS.keys()
)


@every_option
def test_parameters_are_those_of_haiku_bit_for_bit(options):
    rng, inputs = jax.random.key(0), _inputs(B)
    params = ours(**options).init(rng, *inputs)
    expected = haikus(**options).init(rng, *inputs)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@every_option
def test_output_is_that_of_haiku_for_the_same_parameters(options):
    inputs, mask = _inputs(B), _mask((B, N, T, S))
    params = haikus(**options).init(jax.random.key(1), *inputs)
    np.testing.assert_allclose(
        ours(**options).apply(params, *inputs, mask),
        haikus(**options).apply(params, *inputs, mask),
        atol=SAME,
    )


@given(seed=seeds)
def test_output_is_that_of_haiku_whatever_the_arrays(seed):
    inputs, mask = _inputs(B, seed=seed), _mask((B, 1, T, S), seed)
    params = _compiled_init(jax.random.key(seed), *inputs)
    np.testing.assert_allclose(
        _compiled(ours())(params, *inputs, mask),
        _compiled(haikus())(params, *inputs, mask),
        atol=2 * SAME,
    )


@functools.cache
def _compiled_for(cls, **options):
    return jax.jit(_transformed(cls, **options).apply)


def _compiled(transformed: hk.Transformed):
    is_ours = transformed.apply.__closure__ is not None
    del is_ours
    return _APPLY.setdefault(id(transformed), jax.jit(transformed.apply))


_APPLY: dict[int, object] = {}
_compiled_init = jax.jit(haikus().init)
