"""Attention for some queries at a time, so that the logits of all are never held.

After Rabe & Staats 2021, *Self-attention Does Not Need O(n^2) Memory*: memory grows
with the length of a text, not with its square. Here queries alone are split, and the
keys of each chunk's logits stay together, so that softmax is what it always is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from haiku_mqa.ops.numerics import wide_dtype

_MOST_LOGITS = 2**26  # that are held at a time: 256 MB of float32
_FEWEST_QUERIES = 16  # in a chunk, whatever their logits take


def queries_at_once(batch: int, heads: int, queries: int, keys: int) -> int:
    """Returns how many queries of each row to attend for at a time.

    Args:
      batch: B.
      heads: N.
      queries: T.
      keys: S.

    Returns:
      T where all logits may be held, else a power of two.

    Example:
      >>> queries_at_once(8, 12, 512, 512), queries_at_once(2, 32, 8192, 8192)
      (512, 128)
    """
    room = _MOST_LOGITS // max(1, batch * heads * keys)
    if room >= queries:
        return queries
    return min(queries, 2 ** int(math.log2(max(room, _FEWEST_QUERIES))))


def attend_in_chunks(
    attend: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    *,
    size: int,
) -> jax.Array:
    """Attends for a chunk of queries after the other, and for each again backward.

    Args:
      attend: What is done for each chunk; called with all arrays by their names.
      query: ``[B, T, N, H]``.
      key: ``[B, S, K, H]``.
      value: ``[B, S, K, v]``.
      mask: bool ``[B or 1, N or 1, T or 1, S]``.
      bias: float32 ``[B or 1, N or 1, T or 1, S]``.
      size: How many queries a chunk has; the last may have fewer.

    Returns:
      ``[B, T, N, v]``, as ``attend`` of all would return.

    Example:
      >>> q, k = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 5, 1, 4))
      >>> def mean(query, key, value, mask, bias):
      ...     return query * value.mean()
      >>> attend_in_chunks(mean, q, k, k, None, None, size=2).shape
      (1, 3, 2, 4)
    """
    queries = query.shape[1]
    parted: dict[str, jax.Array] = {"query": _parts(query, 1, size)}
    whole: dict[str, jax.Array | None] = {}
    for name, array in (("mask", mask), ("bias", bias)):
        if array is None or array.shape[2] == 1:
            whole[name] = array
        else:
            parted[name] = _parts(array, 2, size)
    # Gradients of keys and values are summed over chunks in the dtype these have here.
    wide = wide_dtype(key.dtype)
    past = key.astype(wide), value.astype(wide)

    def of_chunk(
        past: tuple[jax.Array, jax.Array], chunk: dict[str, jax.Array]
    ) -> jax.Array:
        keys, values = past[0].astype(key.dtype), past[1].astype(value.dtype)
        arrays = {**whole, **chunk}
        return attend(key=keys, value=values, **arrays)

    # What one iteration computes again cannot be taken for what another computed.
    of_chunk = jax.checkpoint(of_chunk, prevent_cse=False)
    outputs = jax.lax.map(lambda chunk: of_chunk(past, chunk), parted)
    joined = jnp.moveaxis(outputs, 0, 1)  # [B, chunks, size, N, v]
    return joined.reshape(len(query), -1, *joined.shape[3:])[:, :queries]


def _parts(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Returns ``[chunks, ..., size, ...]`` of ``[..., T, ...]``, with zeros behind."""
    count = -(-x.shape[axis] // size)
    behind = [(0, 0)] * x.ndim
    behind[axis] = (0, count * size - x.shape[axis])
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, behind).reshape(shape), axis, 0)
