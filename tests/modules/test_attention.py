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
GROUPED = [1, 2, 3, 6]  # numbers of key/value heads
W_INIT = hk.initializers.VarianceScaling(1.0)
B_INIT = hk.initializers.RandomNormal(0.5)  # a bias of zero would prove nothing

seeds = st.integers(0, 2**32 - 1)


def _transformed(cls, **options) -> hk.Transformed:
    def forward(query, key, value, mask=None):
        module = cls(N, H, w_init=W_INIT, b_init=B_INIT, **options)
        return module(query, key, value, mask)

    return hk.without_apply_rng(hk.transform(forward))


ours = functools.partial(_transformed, MultiQueryAttention)
haikus = functools.partial(_transformed, hk.MultiHeadAttention)


def _inputs(*leading: int, seed: int = 0) -> list[jax.Array]:
    draw = np.random.default_rng(seed)
    shapes = [(*leading, T, D), (*leading, S, D), (*leading, S, D)]
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


def _mask(*shape: int, seed: int = 0) -> jax.Array:
    """Returns a random mask; every query sees the first key."""
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[..., 0] = True
    return jnp.asarray(mask)


OPTIONS = {
    "default": {},
    "value_size": {"value_size": 7},
    "model_size": {"model_size": 11},
    "both_sizes": {"value_size": 3, "model_size": 9},
    "no_bias": {"with_bias": False},
    "named": {"name": "attend"},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@every_option
def test_parameters_are_drawn_as_haiku_draws_them(options):
    rng, inputs = jax.random.key(0), _inputs(B)
    params = ours(num_kv_heads=N, **options).init(rng, *inputs)
    expected = haikus(**options).init(rng, *inputs)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@every_option
def test_output_is_that_of_haiku_for_the_same_parameters(options):
    inputs, mask = _inputs(B), _mask(B, N, T, S)
    params = haikus(**options).init(jax.random.key(1), *inputs)
    np.testing.assert_allclose(
        ours(num_kv_heads=N, **options).apply(params, *inputs, mask),
        haikus(**options).apply(params, *inputs, mask),
        atol=SAME,
    )


_haikus_init = jax.jit(haikus().init)
_haikus_apply = jax.jit(haikus().apply)
_ours_apply = jax.jit(ours(num_kv_heads=N).apply)


@given(seed=seeds)
def test_output_is_that_of_haiku_whatever_the_arrays(seed):
    inputs, mask = _inputs(B, seed=seed), _mask(B, 1, T, S, seed=seed)
    params = _haikus_init(jax.random.key(seed), *inputs)
    np.testing.assert_allclose(
        _ours_apply(params, *inputs, mask),
        _haikus_apply(params, *inputs, mask),
        atol=2 * SAME,
    )


@pytest.mark.parametrize(
    ("leading", "mask"),
    [
        ((), None),
        ((), (N, T, S)),
        ((), (1, T, S)),
        ((), (1, 1, S)),
        ((B,), None),
        ((B,), (B, N, T, S)),
        ((B,), (B, 1, T, S)),
        ((B,), (1, 1, T, S)),
        ((B,), (B, 1, 1, S)),
        ((B, 4), None),
        ((B, 4), (B, 4, N, T, S)),
        ((B, 4), (B, 4, 1, T, S)),
        ((B, 4), (B, 1, 1, 1, S)),
        ((B, 4), (1, 4, 1, T, S)),
        ((B, 4), (1, 1, 1, 1, S)),
    ],
)
def test_output_is_that_of_haiku_for_every_shape_of_call_and_mask(leading, mask):
    inputs = _inputs(*leading)
    allowed = None if mask is None else _mask(*mask)
    params = haikus().init(jax.random.key(1), *inputs)
    expected = haikus().apply(params, *inputs, allowed)
    output = ours(num_kv_heads=N).apply(params, *inputs, allowed)
    assert output.shape == expected.shape == (*leading, T, N * H)
    np.testing.assert_allclose(output, expected, atol=SAME)


def _gradients(transformed: hk.Transformed, params, inputs, mask):
    def loss(params, inputs):
        return (transformed.apply(params, *inputs, mask) ** 2).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, inputs)


def test_gradients_are_those_of_haiku():
    inputs, mask = _inputs(B), _mask(B, N, T, S)
    params = haikus().init(jax.random.key(1), *inputs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=SAME),
        _gradients(ours(num_kv_heads=N), params, inputs, mask),
        _gradients(haikus(), params, inputs, mask),
    )


def _shared_out(params, kv_heads: int):
    """Returns parameters in which every query head has a copy of the head it shares."""

    def repeat(leaf: jax.Array) -> jax.Array:
        heads = leaf.reshape(*leaf.shape[:-1], kv_heads, -1)
        return heads.repeat(N // kv_heads, axis=-2).reshape(*leaf.shape[:-1], -1)

    return {
        module: jax.tree.map(repeat, leaves)
        if module.endswith(("/key", "/value"))
        else leaves
        for module, leaves in params.items()
    }


@functools.cache
def _compiled(kv_heads: int):
    grouped = ours(num_kv_heads=kv_heads, value_size=3)
    spread = haikus(value_size=3)
    return jax.jit(grouped.init), jax.jit(grouped.apply), jax.jit(spread.apply)


@pytest.mark.parametrize("kv_heads", GROUPED)
@given(seed=seeds)
def test_shared_heads_are_those_of_haiku_repeated_over_their_group(kv_heads, seed):
    init, grouped, spread = _compiled(kv_heads)
    inputs, mask = _inputs(B, seed=seed), _mask(B, N, T, S, seed=seed)
    params = init(jax.random.key(seed), *inputs)
    np.testing.assert_allclose(
        grouped(params, *inputs, mask),
        spread(_shared_out(params, kv_heads), *inputs, mask),
        atol=EQUAL,
    )


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_gradients_of_shared_heads_are_summed_over_their_group(kv_heads):
    inputs, mask = _inputs(B), _mask(B, N, T, S)
    init, _, _ = _compiled(kv_heads)
    params = init(jax.random.key(1), *inputs)
    shared, spread = ours(num_kv_heads=kv_heads, value_size=3), haikus(value_size=3)

    @jax.jit
    @jax.grad
    def gradients(params):
        return (shared.apply(params, *inputs, mask) ** 2).mean()

    @jax.jit
    @jax.grad
    def summed(params):
        repeated = _shared_out(params, kv_heads)
        return (spread.apply(repeated, *inputs, mask) ** 2).mean()

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=EQUAL),
        gradients(params),
        summed(params),
    )


def test_default_is_one_key_value_head():
    params = ours().init(jax.random.key(0), *_inputs(B))
    shapes = {path.split("/")[1]: leaf["w"].shape for path, leaf in params.items()}
    assert shapes == {
        "query": (D, N * H),
        "key": (D, H),
        "value": (D, H),
        "linear": (N * H, N * H),
    }


def test_modules_in_a_row_are_named_as_haiku_names_them():
    def stack(cls):
        def forward(x):
            for _ in range(2):
                x = cls(2, 4, w_init=W_INIT)(x, x, x)
            return x

        return set(hk.transform(forward).init(jax.random.key(0), jnp.ones((1, 3, 8))))

    assert stack(MultiQueryAttention) == stack(hk.MultiHeadAttention)


def test_mask_of_two_axes_serves_every_row_and_head():
    inputs, mask = _inputs(B, 4), _mask(T, S)
    module = ours()
    params = module.init(jax.random.key(0), *inputs)
    np.testing.assert_array_equal(
        module.apply(params, *inputs, mask),
        module.apply(params, *inputs, jnp.broadcast_to(mask, (B, 4, N, T, S))),
    )


def test_mask_of_three_axes_has_one_square_for_each_row():
    inputs, mask = _inputs(B), _mask(B, T, S)
    module = ours()
    params = module.init(jax.random.key(0), *inputs)
    np.testing.assert_array_equal(
        module.apply(params, *inputs, mask),
        module.apply(params, *inputs, mask[:, None]),
    )


@pytest.mark.parametrize(
    "shape", [(S, T), (B, S, T), (B, 1, S, T), (B, 1, S, 1), (B, T), (3, 1, T, S)]
)
def test_mask_along_the_wrong_axes_is_refused(shape):
    with pytest.raises(ValueError, match="mask must be"):
        ours().init(jax.random.key(0), *_inputs(B), jnp.ones(shape, bool))


def test_mask_with_too_few_leading_axes_is_refused():
    with pytest.raises(ValueError, match=r"mask must be .*leading axes \[2, 4\]"):
        ours().init(jax.random.key(0), *_inputs(B, 4), jnp.ones((B, 1, T, S), bool))


@pytest.mark.parametrize("leading", [(), (B,), (B, 4)])
def test_additive_mask_is_refused(leading):
    additive = jnp.zeros((*leading, 1, T, S))
    with pytest.raises(ValueError, match="mask must be boolean"):
        ours().init(jax.random.key(0), *_inputs(*leading), additive)


@pytest.mark.parametrize("kv_heads", [4, 5, 7])
def test_kv_heads_that_do_not_divide_the_heads_are_refused(kv_heads):
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads = 6"):
        ours(num_kv_heads=kv_heads).init(jax.random.key(0), *_inputs(B))


def test_bias_can_be_given_to_some_projections():
    params = ours(with_bias=("query", "value")).init(jax.random.key(0), *_inputs(B))
    with_bias = {path.split("/")[1] for path, leaf in params.items() if "b" in leaf}
    assert with_bias == {"query", "value"}


def test_bias_of_an_unknown_projection_is_refused():
    with pytest.raises(
        ValueError, match=r"with_bias must name projections .* 'output'"
    ):
        ours(with_bias=("output",)).init(jax.random.key(0), *_inputs(B))


@pytest.mark.parametrize("kv_heads", [0, -1, -2])
def test_kv_heads_below_one_are_refused(kv_heads):
    with pytest.raises(ValueError, match="num_kv_heads"):
        ours(num_kv_heads=kv_heads).init(jax.random.key(0), *_inputs(B))
