"""Matrices of int8, and the products that read them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from haiku_mqa import kernels
from haiku_mqa._arguments import whole_number
from haiku_mqa._processor import multiplies_bfloat16
from haiku_mqa.ops.numerics import wide_dtype

_ALONG_ROWS = (((1,), (1,)), ((), ()))
_FINER = 254.0  # half of a coarse step is 127 fine ones
_MANY = 192  # rows, from which on floating-point products are faster
_LARGEST = 127  # -128 is left out, so that a matrix and its negative are alike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix in a byte a number, with a scale for each row or each column.

    It stands where a matrix of parameters does: it has a shape and a dtype, and is a
    pytree of arrays.

    Attributes:
      values: int8, from -127 to 127; the scaled axis first, so that what one output
        of a product reads lies together.
      scales: float32, one for each row of ``values``.
      axis: Of the matrix, the one that is scaled: 1 where it is ``[in, out]``, 0
        where it is a table of vectors.
      rest: What rounding left over, in a second byte; ``None`` where one is all.

    Example:
      >>> matrix = quantize(jnp.array([[1.0, -4.0], [0.5, 2.0]]), axis=1)
      >>> matrix.values.tolist(), matrix.shape
      ([[127, 64], [-127, 64]], (2, 2))
    """

    values: jax.Array
    scales: jax.Array
    axis: int = dataclasses.field(metadata={"static": True})
    rest: QuantizedMatrix | None = None

    @property
    def parts(self) -> tuple[QuantizedMatrix, ...]:
        """The matrices of one byte a number that are its sum."""
        first = dataclasses.replace(self, rest=None)
        return (first,) if self.rest is None else (first, *self.rest.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that it stands for."""
        return self.values.shape if self.axis == 0 else self.values.shape[::-1]

    @property
    def dtype(self) -> jnp.dtype:
        """float32, of the numbers that it stands for."""
        return self.scales.dtype

    @property
    def nbytes(self) -> int:
        """What it takes, in bytes."""
        return sum(part.values.nbytes + part.scales.nbytes for part in self.parts)


def quantize(matrix: jax.Array, *, axis: int, parts: int = 1) -> QuantizedMatrix:
    """Returns a matrix in int8, with a scale for each place along an axis.

    A scale is the 127th part of the largest number there, so none is cut off
    (Dettmers et al. 2022, *LLM.int8()*).

    Args:
      matrix: Of two axes and of any floating point.
      axis: Which one is scaled.
      parts: How many bytes a number takes; each rounds what those before left over.

    Returns:
      The quantized matrix; no number is off by more than half of its last part's
      scale, and that is the 254th part of the one before.

    Raises:
      ValueError: ``parts`` is not a whole number of at least one.

    Example:
      >>> quantize(jnp.zeros((2, 3)), axis=1).scales.tolist()  # nothing to scale
      [1.0, 1.0, 1.0]
    """
    parts = whole_number("parts", parts)
    wide = matrix.astype(jnp.float32)
    values, scales = _rounded(wide if axis == 0 else wide.T)
    first = QuantizedMatrix(values, scales[:, 0], axis)
    if parts == 1:
        return first
    rest = quantize(wide - dequantize(first), axis=axis, parts=parts - 1)
    return dataclasses.replace(first, rest=rest)


def dequantize(matrix: QuantizedMatrix) -> jax.Array:
    """Returns the matrix that a quantized one stands for, in float32.

    Args:
      matrix: Quantized; or some rows of a table, ``[..., D]``.

    Example:
      >>> dequantize(quantize(jnp.array([[127.0, -1.0]]), axis=0)).tolist()
      [[127.0, -1.0]]
    """
    wide = _sum(
        part.values.astype(jnp.float32) * part.scales[..., None]
        for part in matrix.parts
    )
    return wide if matrix.axis == 0 else wide.T


def quantized_dots(
    x: jax.Array, matrices: Sequence[QuantizedMatrix]
) -> list[jax.Array]:
    """Returns ``quantized_dot`` for several matrices, which are read in one pass.

    Args:
      x: ``[rows, in]``.
      matrices: Each with an out of its own.

    Returns:
      For each, ``[rows, out]``, float32, or float64 where x is.

    Example:
      >>> x, eye = jnp.ones((1, 2)), quantize(jnp.eye(2), axis=1)
      >>> [y.tolist() for y in quantized_dots(x, [eye, eye])]
      [[[1.0, 1.0]], [[1.0, 1.0]]]
    """
    parts = [part for matrix in matrices for part in matrix.parts]
    fits = _kernel_fits(x)
    products = iter(_kernel_dots(x, parts) if fits else [_dot(x, p) for p in parts])
    return [_sum(itertools.islice(products, len(m.parts))) for m in matrices]


def quantized_dot(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """Returns the products of x with what lies along the scaled axis.

    Up to many rows a compiled kernel makes them, where there is one
    (``haiku_mqa.kernels``). Else, how depends on how many rows there are, and is right
    for each to float32's rounding or nearly so:

    * One row is bound by reading the matrix, which is widened while it is read.
    * Some rows are split into a coarse and a fine int8 part, 15 bits together, whose
      products with the matrix are summed in int32.
    * Many rows are bound by multiplying: bfloat16 products, summed in float32; on a
      CPU that has no instructions for those, float32 products.

    Args:
      x: ``[rows, in]``.
      matrix: Quantized ``[in, out]`` by columns, or ``[out, in]`` by rows.

    Returns:
      ``[rows, out]``, float32, or float64 where x is.

    Example:
      >>> matrix = quantize(jnp.eye(3), axis=1)
      >>> quantized_dot(jnp.array([[1.0, 2.0, 4.0]]), matrix).round().tolist()
      [[1.0, 2.0, 4.0]]
    """
    return quantized_dots(x, [matrix])[0]


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, arrays)


def _dot(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """Returns the product with one part of a matrix, as XLA makes it."""
    wide = wide_dtype(x.dtype)
    x = x.astype(wide)
    if x.shape[0] == 1:
        sums = _single_dot(x, matrix)
    elif x.shape[0] < _MANY:
        sums = _split_dot(x, matrix.values)
    else:
        narrow = jnp.bfloat16 if _has_fast_bfloat16() else wide
        sums = jax.lax.dot_general(
            x.astype(narrow),
            matrix.values.astype(narrow),
            _ALONG_ROWS,
            preferred_element_type=wide,
        )
    return sums * matrix.scales.astype(wide)


def kept_quantized(params: Any, changing: Any) -> tuple[Any, Any]:
    """Returns parameters for use inside a loop, and something that changes there.

    Else XLA widens quantized matrices once, before the loop, and each turn of it then
    reads four times their bytes.

    Args:
      params: A pytree, quantized or not.
      changing: A pytree that the loop's body gets from the turn before.

    Returns:
      Both, as they were.

    Example:
      >>> params, token = kept_quantized({"w": jnp.eye(2)}, jnp.array([3]))
      >>> token.tolist()
      [3]
    """
    return jax.lax.optimization_barrier((params, changing))


def _has_fast_bfloat16() -> bool:
    return jax.default_backend() != "cpu" or multiplies_bfloat16()


def _kernel_fits(x: jax.Array) -> bool:
    return x.dtype != jnp.float64 and kernels.int8_dots_fit(x.shape[0])


def _kernel_dots(x: jax.Array, matrices: Sequence[QuantizedMatrix]) -> list[jax.Array]:
    pairs = [(matrix.values, matrix.scales) for matrix in matrices]
    return kernels.int8_dots(x.astype(jnp.float32), pairs)


def _single_dot(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """Returns ``x @ values.T`` of one row."""
    # On a CPU only this form, a row times a transposed matrix, has XLA widen the
    # numbers inside the product's loop. What made x would be computed there too, for
    # each output anew, but for a division, which it never repeats. So there is one,
    # by a number that it cannot know, and that is near one whatever the scales are.
    unit = jnp.clip(matrix.scales[0], 0.5, 1.0).astype(x.dtype)
    return ((x / unit) @ matrix.values.astype(x.dtype).T) * unit


def _split_dot(x: jax.Array, values: jax.Array) -> jax.Array:
    """Returns ``x @ values.T`` by two int8 products, as rows of a single one."""
    coarse, scales = _rounded(x)
    rest = x / scales - coarse.astype(x.dtype)  # from -0.5 to 0.5
    fine = jnp.round(rest * _FINER).astype(jnp.int8)
    sums = jax.lax.dot_general(
        jnp.concatenate([coarse, fine]),
        values,
        _ALONG_ROWS,
        preferred_element_type=jnp.int32,
    ).astype(x.dtype)
    coarse_sums, fine_sums = jnp.split(sums, 2)
    return (coarse_sums + fine_sums / _FINER) * scales


def _rounded(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns rows as int8, and the scale ``[rows, 1]`` of each."""
    largest = jnp.abs(rows).max(axis=1, keepdims=True)
    scales = jnp.where(largest == 0, 1.0, largest / _LARGEST).astype(rows.dtype)
    return jnp.round(rows / scales).astype(jnp.int8), scales
