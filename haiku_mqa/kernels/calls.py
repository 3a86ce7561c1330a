"""The kernels as functions of arrays, differentiable like what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from haiku_mqa._processor import multiplies_bfloat16
from haiku_mqa.kernels.library import is_loaded

_MANY_ROWS = (
    192  # from which on XLA's bfloat16 products are faster, where there are any
)
_FEW_ROWS = 4  # up to which reading a matrix takes longer than multiplying by it


def int8_dots_fit(rows: int) -> bool:
    """Returns whether ``int8_dots`` is at hand and the faster way.

    Args:
      rows: Of x.
    """
    is_best = rows < _MANY_ROWS or not multiplies_bfloat16()
    return is_best and is_loaded()


def int8_dots(
    x: jax.Array, matrices: Sequence[tuple[jax.Array, jax.Array]]
) -> list[jax.Array]:
    """Returns the products of rows with several int8 matrices, in one pass over them.

    Rows are rounded to int16, 15 bits of it used, and sums are exact.

    Args:
      x: float32 ``[rows, in]``.
      matrices: For each, values, int8 ``[out, in]``, and scales, float32 ``[out]``.

    Returns:
      For each, ``x @ (values * scales[:, None]).T``, float32 ``[rows, out]``.
    """

    def plainly(x: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        return [(x @ values.astype(x.dtype).T) * scales for values, scales in pairs]

    results = [
        jax.ShapeDtypeStruct((x.shape[0], values.shape[0]), jnp.float32)
        for values, _ in matrices
    ]
    call = jax.ffi.ffi_call("haiku_mqa_int8_dots", results, vmap_method="sequential")
    return _differentiable(call, plainly)(x, *(a for pair in matrices for a in pair))


def float_dots_fit(x: jax.Array, matrices: Sequence[jax.Array]) -> bool:
    """Returns whether ``float_dots`` is at hand, and faster than XLA's products.

    Args:
      x: ``[rows, in]``.
      matrices: Of any floating point.
    """
    dtypes = {matrix.dtype for matrix in matrices}
    is_one = dtypes in ({jnp.dtype("float32")}, {jnp.dtype("bfloat16")})
    return is_one and _is_narrow(x) and x.shape[0] <= _FEW_ROWS and is_loaded()


def table_dot_fits(x: jax.Array, table: jax.Array) -> bool:
    """Returns whether ``table_dot`` is at hand, and faster than XLA's product.

    Args:
      x: ``[rows, D]``.
      table: Of any floating point.
    """
    # XLA reads float32 as fast, and takes several rows of bfloat16 at once.
    is_half = table.dtype == jnp.bfloat16
    return is_half and _is_narrow(x) and x.shape[0] == 1 and is_loaded()


def _is_narrow(x: jax.Array) -> bool:
    return x.dtype in (jnp.float32, jnp.bfloat16)


def float_dots(x: jax.Array, matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the products of few rows with several matrices, in one pass over them.

    Numbers of half precision are widened as they are read.

    Args:
      x: float32 or bfloat16 ``[rows, in]``.
      matrices: ``[in, out]``, all of float32 or all of bfloat16.

    Returns:
      For each, ``x @ matrix``, float32 ``[rows, out]``.
    """

    def plainly(x: jax.Array, *matrices: jax.Array) -> list[jax.Array]:
        return [x @ matrix.astype(x.dtype) for matrix in matrices]

    results = [
        jax.ShapeDtypeStruct((x.shape[0], matrix.shape[1]), jnp.float32)
        for matrix in matrices
    ]
    call = jax.ffi.ffi_call("haiku_mqa_float_dots", results, vmap_method="sequential")
    return _differentiable(call, plainly)(x.astype(jnp.float32), *matrices)


def table_dot(x: jax.Array, table: jax.Array) -> jax.Array:
    """Returns the products of few rows with the vectors of a table.

    Args:
      x: float32 or bfloat16 ``[rows, D]``.
      table: bfloat16 ``[size, D]``.

    Returns:
      ``x @ table.T``, float32 ``[rows, size]``.
    """

    def plainly(x: jax.Array, table: jax.Array) -> jax.Array:
        return x @ table.astype(x.dtype).T

    result = jax.ShapeDtypeStruct((x.shape[0], table.shape[0]), jnp.float32)
    call = jax.ffi.ffi_call("haiku_mqa_table_dot", result, vmap_method="sequential")
    return _differentiable(call, plainly)(x.astype(jnp.float32), table)


def attend_fits(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> bool:
    """Returns whether ``attend`` can and should be called.

    Args:
      query: ``[B, T, N, H]``.
      key: ``[B, S, K, H]``.
      value: ``[B, S, K, v]``.
      mask: bool ``[B or 1, N or 1, T or 1, S]``.
    """
    is_float32 = all(x.dtype == jnp.float32 for x in (query, key, value))
    is_shared = mask is None or mask.shape[1] == 1  # by all heads
    return is_float32 and is_shared and is_loaded()


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    scale: float,
    plainly: Callable[..., jax.Array],
) -> jax.Array:
    """Returns attention; keys that stand before or after all that is seen are not read.

    Args:
      query: float32 ``[B, T, N, H]``.
      key: float32 ``[B, K, S, H]``.
      value: float32 ``[B, K, S, v]``.
      mask: bool ``[B, T, S]``.
      scale: Factor on the logits.
      plainly: The same of the same arrays in JAX, for derivatives.

    Returns:
      float32 ``[B, T, N, v]``.
    """
    result = jax.ShapeDtypeStruct((*query.shape[:3], value.shape[-1]), jnp.float32)
    call = jax.ffi.ffi_call("haiku_mqa_attend", result, vmap_method="sequential")
    return _differentiable(call, plainly)(query, key, value, mask, jnp.float32(scale))


def _differentiable(
    call: Callable[..., Any], plainly: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a kernel's call with the derivatives of what it stands for."""

    @jax.custom_jvp
    def function(*arrays: jax.Array):
        return call(*arrays)

    @function.defjvp
    def derivatives(primals: tuple, tangents: tuple):
        return jax.jvp(plainly, primals, tangents)

    return function
