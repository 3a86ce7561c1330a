from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.ops import (
    QuantizedMatrix,
    dequantize,
    dot,
    quantize,
    quantized,
    quantized_dot,
)

WIDENED = 1e-6  # of the largest product: float32's own rounding
SPLIT = 1e-4  # 15 bits of x
HALF = 1e-2  # bfloat16's 8 bits of x
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-20, 1e-3, 1.0, 1e3, 1e20])


def _drawn(seed, *shape, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, "f4")


# --- Matrices -------------------------------------------------------------------------


@given(
    seeds, st.sampled_from([(1, 1), (3, 8), (7, 2)]), st.sampled_from([0, 1]), scales
)
def test_no_number_is_off_by_more_than_half_of_its_scale(seed, shape, axis, scale):
    matrix = _drawn(seed, *shape, scale=scale)
    small = quantize(matrix, axis=axis)
    assert small.shape == matrix.shape
    scales = small.scales if axis == 1 else small.scales[:, None]
    off = jnp.abs(dequantize(small) - matrix)
    assert bool((off <= 0.5001 * scales).all())


@given(seeds, st.sampled_from([0, 1]))
def test_second_byte_is_as_fine_as_254_steps_of_the_first(seed, axis):
    matrix = _drawn(seed, 7, 9)
    small = quantize(matrix, axis=axis, parts=2)
    first, second = small.parts
    assert small.nbytes == first.nbytes + second.nbytes == 2 * first.nbytes
    assert small.shape == second.shape == matrix.shape
    assert (second.scales <= 1.0001 * first.scales / 254).all()
    off = jnp.abs(dequantize(small) - matrix)
    scales = second.scales if axis == 1 else second.scales[:, None]
    rounding = 2 * jnp.finfo(jnp.float32).eps * jnp.abs(matrix)
    assert (off <= 0.5001 * scales + rounding).all()


@pytest.mark.parametrize("parts", [0, -1, 1.5])
def test_matrix_has_at_least_one_byte_a_number(parts):
    with pytest.raises(ValueError, match=f"parts must be .*got {parts}"):
        quantize(jnp.eye(2), axis=1, parts=parts)


@given(seeds, st.sampled_from([0, 1]))
def test_largest_number_of_each_scale_is_kept(seed, axis):
    matrix = _drawn(seed, 5, 4)
    small = quantize(matrix, axis=axis)
    largest = jnp.abs(matrix).max(axis=1 - axis)
    np.testing.assert_allclose(small.scales * 127, largest, rtol=1e-6)
    assert (np.abs(small.values).max(axis=1) == 127).all()


@given(seeds)
def test_quantizing_what_was_quantized_changes_nothing(seed):
    once = quantize(_drawn(seed, 6, 5), axis=1)
    twice = quantize(dequantize(once), axis=1)
    np.testing.assert_array_equal(once.values, twice.values)


def test_negative_of_a_matrix_has_the_negative_numbers():
    matrix = _drawn(0, 7, 3)
    plus, minus = quantize(matrix, axis=0), quantize(-matrix, axis=0)
    np.testing.assert_array_equal(plus.values, -minus.values)
    assert int(plus.values.min()) >= -127


def test_matrix_of_zeros_stays_one():
    for axis in (0, 1):
        assert not dequantize(quantize(jnp.zeros((3, 2)), axis=axis)).any()


def test_quantized_matrix_is_a_pytree_that_jit_takes():
    matrix = quantize(_drawn(0, 4, 6), axis=1)
    same = jax.jit(lambda m: m)(matrix)
    assert isinstance(same, QuantizedMatrix)
    assert (same.axis, same.shape, same.dtype) == (1, (4, 6), jnp.float32)
    assert matrix.nbytes == 4 * 6 + 6 * 4


# --- Products -------------------------------------------------------------------------


def _tolerance(rows):
    if rows == 1:
        return WIDENED
    return SPLIT if rows < quantized._MANY else HALF


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def processor(request, monkeypatch):
    """One that has products of bfloat16, and one that has none."""
    monkeypatch.setattr(quantized, "multiplies_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rows", [192, 300])
def test_many_rows_are_multiplied_in_what_the_processor_is_fast_at(rows, processor):
    text = jax.jit(lambda *both: quantized_dot(*both)).lower(
        _drawn(0, rows, 40), quantize(_drawn(7, 40, 24), axis=1)
    )
    assert ("bf16" in text.as_text()) == processor


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 191, 192, 300])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("parts", [1, 2])
def test_product_is_that_of_the_matrix_it_stands_for(rows, axis, parts):
    x = _drawn(rows, rows, 40, scale=3.0)
    matrix = _drawn(7, *((40, 24) if axis == 1 else (24, 40)))
    small = quantize(matrix, axis=axis, parts=parts)
    wide = dequantize(small) if axis == 1 else dequantize(small).T
    expected = np.asarray(x, np.float64) @ np.asarray(wide, np.float64)
    got = jax.jit(quantized_dot)(x, small)
    off = np.abs(got - expected).max() / np.abs(expected).max()
    assert off <= _tolerance(rows)


@given(seeds, st.sampled_from([1, 2, 5]), scales, scales)
def test_product_is_right_at_every_scale(seed, rows, scale, other):
    x, matrix = _drawn(seed, rows, 8, scale=scale), _drawn(seed + 1, 8, 6, scale=other)
    small = quantize(matrix, axis=1)
    expected = np.asarray(x, np.float64) @ np.asarray(dequantize(small), np.float64)
    if not (np.abs(expected) > 1e-37).all() or not (np.abs(expected) < 1e37).all():
        return  # float32 itself has no room for it
    largest = np.abs(x).max(1, keepdims=True) * np.abs(dequantize(small)).max() * 8
    assert (np.abs(quantized_dot(x, small) - expected) <= SPLIT * largest).all()


def test_row_of_zeros_gives_zeros():
    small = quantize(_drawn(0, 8, 6), axis=1)
    x = _drawn(1, 3, 8).at[1].set(0.0)
    assert not quantized_dot(x, small)[1].any()
    assert not quantized_dot(x[1:2], small).any()


def test_rows_do_not_change_one_another():
    small = quantize(_drawn(0, 8, 6), axis=1)
    x = _drawn(1, 3, 8)
    beside_giants = x.at[1:].multiply(1e6)
    np.testing.assert_array_equal(
        quantized_dot(x, small)[0], quantized_dot(beside_giants, small)[0]
    )


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_nan_goes_through(rows):
    small = quantize(_drawn(0, 8, 6), axis=1)
    x = _drawn(1, rows, 8).at[0, 2].set(jnp.nan)
    assert bool(jnp.isnan(quantized_dot(x, small)[0]).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dot_has_the_dtype_of_its_rows(dtype):
    x = _drawn(0, 2, 8).astype(dtype)
    matrix = _drawn(1, 8, 6)
    for m in (matrix, quantize(matrix, axis=1)):
        assert dot(x, m).dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(dot(x, m), x @ matrix, atol=0.1)
