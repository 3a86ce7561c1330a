"""Products of rows with matrices of parameters, whatever those are stored in."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from haiku_mqa import kernels
from haiku_mqa.ops.numerics import wide_einsum
from haiku_mqa.ops.quantized import QuantizedMatrix, quantized_dot, quantized_dots

Matrix = jax.Array | QuantizedMatrix


def dot(x: jax.Array, matrix: Matrix) -> jax.Array:
    """Returns ``x @ matrix`` in x's dtype, whatever the matrix is stored in.

    Args:
      x: ``[rows, in]``.
      matrix: ``[in, out]``.

    Returns:
      ``[rows, out]``.

    Example:
      >>> from haiku_mqa.ops import quantize
      >>> x = jnp.array([[1.0, 2.0]])
      >>> dot(x, jnp.eye(2)).tolist(), dot(x, quantize(jnp.eye(2), axis=1)).tolist()
      ([[1.0, 2.0]], [[1.0, 2.0]])
    """
    return dots(x, [matrix])[0]


def dots(x: jax.Array, matrices: Sequence[Matrix]) -> list[jax.Array]:
    """Returns ``x @ matrix`` for several matrices, which are read in one pass.

    Args:
      x: ``[rows, in]``.
      matrices: Each ``[in, out]``, with an out of its own.

    Returns:
      For each, ``[rows, out]`` in x's dtype.

    Example:
      >>> [y.tolist() for y in dots(jnp.ones((1, 2)), [jnp.eye(2), jnp.ones((2, 1))])]
      [[[1.0, 1.0]], [[2.0]]]
    """
    quantized = [m for m in matrices if isinstance(m, QuantizedMatrix)]
    plain = [m for m in matrices if not isinstance(m, QuantizedMatrix)]
    if quantized and plain:
        return [dot(x, matrix) for matrix in matrices]
    if quantized:
        return [y.astype(x.dtype) for y in quantized_dots(x, quantized)]
    if kernels.float_dots_fit(x, plain):
        return [y.astype(x.dtype) for y in kernels.float_dots(x, plain)]
    return [jnp.dot(x, matrix.astype(x.dtype)) for matrix in plain]


def wide_dot(x: jax.Array, matrix: Matrix) -> jax.Array:
    """Returns ``x @ matrix``, as ``dot``, but as wide as its sums are.

    Args:
      x: ``[rows, in]``.
      matrix: ``[in, out]``.

    Returns:
      ``[rows, out]``, float32, or float64 where x is.

    Example:
      >>> x = jnp.full((1, 300), 1.0, jnp.bfloat16)
      >>> wide_dot(x, jnp.ones((300, 1), jnp.bfloat16))
      Array([[300.]], dtype=float32)
    """
    if isinstance(matrix, QuantizedMatrix):
        return quantized_dot(x, matrix)
    if kernels.float_dots_fit(x, [matrix]):
        return kernels.float_dots(x, [matrix])[0]
    return wide_einsum("ri,io->ro", x, matrix.astype(x.dtype))


def wide_table_dot(x: jax.Array, table: Matrix) -> jax.Array:
    """Returns the products of x with the vectors of a table, as wide as their sums.

    Args:
      x: ``[rows, D]``.
      table: ``[size, D]``.

    Returns:
      ``[rows, size]``, float32, or float64 where x is.

    Example:
      >>> wide_table_dot(jnp.array([[1.0, 2.0]]), jnp.eye(2)).tolist()
      [[1.0, 2.0]]
    """
    if isinstance(table, QuantizedMatrix):
        return quantized_dot(x, table)
    if kernels.table_dot_fits(x, table):
        return kernels.table_dot(x, table)
    return wide_einsum("rd,vd->rv", x, table.astype(x.dtype))
