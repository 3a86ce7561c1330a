"""The kernels make what XLA makes, at every shape, and nothing depends on them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, build, generate, kernels, quantize_params
from haiku_mqa.ops import multi_query_attention, quantize, quantized_dot
from haiku_mqa.ops.quantized import dots

HALVES = 1e-4  # 15 bits of x
ROUNDING = 2e-6  # float32's own
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Kernels of this machine, for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAIKU_MQA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HAIKU_MQA_KERNELS", "on")
        kernels.build()
        jax.clear_caches()  # what was traced without them
        assert kernels.is_loaded()
        yield
        jax.clear_caches()


def _drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "f4")


def _sizes(matrix):
    return dataclasses.replace(matrix, values=jnp.abs(matrix.values))


def _exact(x, matrix):
    values = np.asarray(matrix.values, "f8") * np.asarray(matrix.scales, "f8")[:, None]
    return np.asarray(x, "f8") @ values.T


# --- Products with int8 ---------------------------------------------------------------


@given(
    seeds,
    st.sampled_from([1, 2, 5, 67]),
    st.sampled_from([1, 33, 1100]),
    st.sampled_from([[1], [4, 7], [64, 1, 70]]),
)
def test_products_are_exact_but_for_the_rounding_of_rows(seed, rows, size, outs):
    x = _drawn(seed, rows, size)
    matrices = [quantize(_drawn(seed + i, size, o), axis=1) for i, o in enumerate(outs)]
    half_unit = np.abs(x).max(axis=1, keepdims=True) / 16383 / 2
    for y, matrix in zip(dots(x, matrices), matrices, strict=True):
        sizes = _exact(np.ones((1, size)), _sizes(matrix))
        rounding = 1e-6 * _exact(np.abs(x), _sizes(matrix))
        assert (
            np.abs(y - _exact(x, matrix)) <= 1.01 * half_unit * sizes + rounding
        ).all()


def test_the_largest_sums_there_can_be_do_not_overflow():
    matrix = quantize(jnp.full((5000, 4), -3.0), axis=1)
    y = quantized_dot(jnp.full((5, 5000), 2.0), matrix)
    np.testing.assert_allclose(y, -30000.0, rtol=HALVES)


@pytest.mark.parametrize("rows", [1, 6])
def test_rows_of_nothing_and_of_next_to_nothing_give_nothing(rows):
    matrix = quantize(_drawn(0, 8, 3), axis=1)
    assert (quantized_dot(jnp.zeros((rows, 8)), matrix) == 0).all()
    assert (quantized_dot(jnp.full((rows, 8), 1e-42), matrix) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_spoils_its_row_alone(bad):
    x = _drawn(0, 6, 8).at[2, 3].set(bad)
    y = quantized_dot(x, quantize(_drawn(1, 8, 5), axis=1))
    assert np.isnan(y[2]).all()
    assert np.isfinite(np.delete(y, 2, axis=0)).all()


def test_half_precision_rows_give_half_precision():
    matrix = quantize(_drawn(0, 8, 3), axis=1)
    (y,) = dots(_drawn(1, 2, 8).astype(jnp.bfloat16), [matrix])
    assert y.dtype == jnp.bfloat16


def test_products_have_derivatives_and_can_be_mapped():
    matrix = quantize(_drawn(0, 8, 3), axis=1)
    rows = _drawn(1, 4, 2, 8)
    gradient = jax.grad(lambda x: quantized_dot(x, matrix).sum())(rows[0])
    wanted = _exact(np.eye(8), matrix).sum(axis=1)
    np.testing.assert_allclose(gradient, np.stack([wanted, wanted]), rtol=1e-5)
    mapped = jax.vmap(lambda x: quantized_dot(x, matrix))(rows)
    np.testing.assert_array_equal(mapped[3], quantized_dot(rows[3], matrix))


# --- Attention ------------------------------------------------------------------------

_SHAPES = [  # B, T, N, K, S, H, v
    (1, 1, 9, 3, 130, 64, 64),
    (2, 1, 8, 1, 70, 16, 20),
    (2, 7, 8, 1, 65, 20, 70),
    (3, 5, 4, 4, 9, 8, 8),
    (1, 33, 6, 2, 64, 33, 130),
]


@pytest.mark.parametrize("shape", _SHAPES)
@given(seeds)
def test_attention_is_what_it_is_without_a_kernel(shape, seed):
    batch, queries, heads, kv_heads, keys, size, value_size = shape
    query = _drawn(seed, batch, queries, heads, size)
    key = _drawn(seed + 1, batch, keys, kv_heads, size)
    value = _drawn(seed + 2, batch, keys, kv_heads, value_size)
    generator = np.random.default_rng(seed)
    mask = generator.random((batch, queries, keys)) < generator.random()
    mask[0, 0] = False  # one that sees nothing
    fast = multi_query_attention(query, key, value, jnp.asarray(mask))
    plain = multi_query_attention(
        query, key, value, jnp.asarray(mask), implementation="xla"
    )
    np.testing.assert_allclose(fast, plain, atol=ROUNDING)
    assert (fast[0, 0] == 0).all()


def test_attention_of_huge_logits_stays_finite_and_of_nan_is_nan():
    query, key = jnp.full((1, 2, 4, 8), 1e4), jnp.full((1, 16, 2, 8), 1e4)
    value, mask = _drawn(0, 1, 16, 2, 8), jnp.ones((2, 16), bool)
    assert np.isfinite(multi_query_attention(query, key, value, mask)).all()
    spoilt = multi_query_attention(query.at[0, 1].set(jnp.nan), key, value, mask)
    assert np.isfinite(spoilt[0, 0]).all()
    assert np.isnan(spoilt[0, 1]).all()


def test_attention_has_derivatives():
    query, key, value = (_drawn(i, 1, 5, 4, 8) for i in range(3))
    mask = jnp.tril(jnp.ones((5, 5), bool))

    def total(arrays, implementation=None):
        return multi_query_attention(*arrays, mask, implementation=implementation).sum()

    fast = jax.grad(total)((query, key, value))
    plain = jax.grad(lambda arrays: total(arrays, "xla"))((query, key, value))
    for one, other in zip(fast, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)


# --- Models ---------------------------------------------------------------------------


def test_a_model_says_the_same_with_kernels_and_without(monkeypatch):
    model = build(
        DecoderConfig(
            vocab_size=97,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            d_model=32,
            d_ff=64,
            gated=True,
            position_embedding="rotary",
            sliding_window=6,
        )
    )
    params = quantize_params(model, model.init(jax.random.key(0)))
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]

    def said():
        return generate(model, params, prompts, max_new_tokens=12, logprobs=True)

    fast = said()
    monkeypatch.setenv("HAIKU_MQA_KERNELS", "off")
    jax.clear_caches()
    plain = said()
    jax.clear_caches()
    assert fast.tokens == plain.tokens
    for one, other in zip(fast.logprobs, plain.logprobs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
