"""The kernels make what XLA makes, at every shape, and nothing depends on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, build, generate, kernels, quantize_params
from haiku_mqa.ops import (
    dot,
    dots,
    multi_query_attention,
    quantize,
    quantized_dot,
    wide_dot,
    wide_table_dot,
)

pytestmark = pytest.mark.usefixtures("compiled")

HALVES = 1e-4  # 15 bits of x
ROUNDING = 2e-6  # float32's own
seeds = st.integers(0, 2**32 - 1)


def _drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "f4")


def _exact(x, matrix, of=np.asarray):
    values = sum(
        of(np.asarray(part.values, "f8")) * np.asarray(part.scales, "f8")[:, None]
        for part in matrix.parts
    )
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
    matrices = [
        quantize(_drawn(seed + i, size, o), axis=1, parts=1 + i % 2)
        for i, o in enumerate(outs)
    ]
    half_unit = np.abs(x).max(axis=1, keepdims=True) / 16383 / 2
    for y, matrix in zip(dots(x, matrices), matrices, strict=True):
        sizes = _exact(np.ones((1, size)), matrix, np.abs)
        rounding = 1e-6 * _exact(np.abs(x), matrix, np.abs)
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


# --- Products with matrices of floating point -----------------------------------------

floats = st.sampled_from(["float32", "bfloat16"])
few = st.integers(1, 4)


def _near(y, x, matrix):
    """Whether y is the product, but for float32's rounding of its sums."""
    x, matrix = np.asarray(x, "f8"), np.asarray(matrix.astype("f4"), "f8")
    sizes = np.abs(x) @ np.abs(matrix)
    return (np.abs(np.asarray(y, "f8") - x @ matrix) <= ROUNDING * sizes + 1e-30).all()


@given(
    seeds,
    few,
    floats,
    st.sampled_from([1, 7, 64, 333]),
    st.sampled_from([[1], [16, 49], [70, 1, 128]]),
)
def test_products_with_floats_are_exact_but_for_rounding(seed, rows, dtype, size, outs):
    x = _drawn(seed, rows, size)
    matrices = [_drawn(seed + i, size, o).astype(dtype) for i, o in enumerate(outs)]
    assert kernels.float_dots_fit(x, matrices)
    for y, matrix in zip(dots(x, matrices), matrices, strict=True):
        assert y.dtype == jnp.float32
        assert _near(y, x, matrix)


@given(seeds, st.sampled_from([1, 63, 64, 200]), st.sampled_from([1, 31, 300]))
def test_products_with_a_half_precision_table_are_exact(seed, size, length):
    x = _drawn(seed, 1, size).astype(jnp.bfloat16)
    table = _drawn(seed + 1, length, size).astype(jnp.bfloat16)
    assert kernels.table_dot_fits(x, table)
    logits = wide_table_dot(x, table)
    assert logits.dtype == jnp.float32
    assert _near(logits, x, table.T)


def test_half_precision_parameters_of_half_precision_rows_give_half_precision():
    x = _drawn(0, 2, 8).astype(jnp.bfloat16)
    matrix = _drawn(1, 8, 3).astype(jnp.bfloat16)
    assert dot(x, matrix).dtype == jnp.bfloat16
    assert wide_dot(x, matrix).dtype == jnp.float32


def test_kernels_leave_what_they_do_not_know_to_xla():
    x, matrix = _drawn(0, 2, 8), _drawn(1, 8, 3)
    assert not kernels.float_dots_fit(_drawn(0, 5, 8), [matrix])
    assert not kernels.float_dots_fit(x.astype("float16"), [matrix])
    assert not kernels.float_dots_fit(x, [matrix.astype("float16")])
    assert not kernels.float_dots_fit(x, [matrix, matrix.astype("bfloat16")])
    assert not kernels.table_dot_fits(x, matrix.T.astype("bfloat16"))
    assert not kernels.table_dot_fits(x[:1], matrix.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_floats_have_derivatives_and_can_be_mapped(dtype):
    matrix, rows = _drawn(0, 8, 3).astype(dtype), _drawn(1, 4, 2, 8)

    def total(x, matrix):
        return (dot(x, matrix) ** 2).sum()

    for of in (0, 1):
        fast = jax.grad(total, of)(rows[0], matrix)
        plain = jax.grad(lambda x, w: ((x @ w.astype("f4")) ** 2).sum(), of)(
            rows[0], matrix
        )
        assert fast.dtype == plain.dtype
        np.testing.assert_allclose(
            fast.astype("f4"), plain.astype("f4"), rtol=1e-2, atol=1e-5
        )
    mapped = jax.vmap(lambda x: dot(x, matrix))(rows)
    np.testing.assert_array_equal(mapped[3], dot(rows[3], matrix))


# --- Attention ------------------------------------------------------------------------

_SHAPES = [  # B, T, N, K, S, H, v
    (1, 1, 12, 1, 1500, 64, 64),
    (1, 3, 5, 1, 700, 24, 68),
    (2, 2, 4, 2, 300, 16, 16),
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


def test_keys_that_are_shared_out_keep_what_is_not_finite_to_its_query():
    query = jnp.ones((1, 2, 4, 8))
    key = jnp.ones((1, 900, 1, 8)).at[0, 700].set(-jnp.inf)
    value, mask = (
        _drawn(0, 1, 900, 1, 8),
        jnp.ones((2, 900), bool).at[0, 700].set(False),
    )
    fast = multi_query_attention(query, key, value, mask)
    wanted = np.delete(value[0, :, 0], 700, axis=0).mean(axis=0)
    # What is masked, or has a logit of minus infinity, is as if it were not there.
    np.testing.assert_allclose(fast, np.broadcast_to(wanted, fast.shape), atol=1e-5)
    spoilt = multi_query_attention(query, -key, value, mask)
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
