"""What all layers share during one call: who stands where, and who sees whom."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa.cache import KVCache, LayerCache
from haiku_mqa.ops.masks import broadcast_mask, causal_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What attention needs to know beside its inputs.

    Made once a call by ``make_context``; training, prefill and decode differ in
    nothing else.

    Attributes:
      positions: int32 ``[B, T]``, where each query's token stands.
      key_positions: int32 ``[B, S]``, where each key's token stands.
      distance: int32 ``[B, T, S]``, how many tokens each key is behind each query.
      mask: bool ``[B, N or 1, T, S]``, or ``None`` where all may attend to all.
      slots: int32 ``[B, T]``, where the cache stores each token; ``None`` without a
        cache. The cache's capacity means that it is not stored.
      is_training: Whether dropout acts.
      return_attention: Whether layers return their attention weights.
    """

    positions: jax.Array
    key_positions: jax.Array
    distance: jax.Array
    mask: jax.Array | None = None
    slots: jax.Array | None = None
    is_training: bool = False
    return_attention: bool = False


class LayerOutput(NamedTuple):
    """What a layer returns where it was given a ``Context``.

    Attributes:
      x: ``[B, T, D]``.
      cache: The layer's cache after these tokens; ``None`` if it was given none.
      attention: float32 ``[B, N, T, S]`` weights, where the context asks for them.
    """

    x: jax.Array
    cache: LayerCache | None
    attention: jax.Array | None


def free_context(
    batch: int, queries: int, keys: int, mask: jax.Array | None
) -> Context:
    """Returns the context of plain attention: all stand in order, a mask decides."""
    positions = jnp.broadcast_to(jnp.arange(queries), (batch, queries))
    key_positions = jnp.broadcast_to(jnp.arange(keys), (batch, keys))
    return Context(
        positions=positions,
        key_positions=key_positions,
        distance=positions[:, :, None] - key_positions[:, None, :],
        mask=mask,
    )


def make_context(
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
    cache: KVCache | None = None,
    num_heads: int = 1,
    is_training: bool = False,
    return_attention: bool = False,
) -> tuple[Context, KVCache | None]:
    """Works out who sees whom, for a decoder that reads causally.

    Args:
      tokens: ``[B, T]``; only its shape is used.
      positions: int32 ``[B, T]``. By default tokens count from zero within their
        row, or within their segment, go on from the cache, and padding does not
        count.
      segment_ids: int32 ``[B, T]``; tokens see only their own segment.
      mask: bool, True means may attend: ``[B, T]`` says which tokens are real (the
        rest is padding, on either side), ``[B, T, S]`` or ``[B, N, T, S]`` which
        pairs may attend, in addition to causality.
      cache: The past, if there is one.
      num_heads: N, to check a mask by heads.
      is_training: See ``Context``.
      return_attention: See ``Context``.

    Returns:
      The context, and the cache with its book-keeping (lengths, positions, segments)
      brought forward; its keys and values are written by the layers.
    """
    batch, queries = tokens.shape
    keys = queries if cache is None else cache.capacity
    pairs = mask if mask is not None and mask.ndim != 2 else None
    real = (
        jnp.ones((batch, queries), bool) if mask is None or pairs is not None else mask
    )
    _check_padding(real, batch, queries)
    segments = jnp.zeros_like(tokens, jnp.int32) if segment_ids is None else segment_ids

    order = real.cumsum(axis=1, dtype=jnp.int32) - 1  # [B, T], padding not counted
    if cache is not None:
        order = order + cache.lengths[:, None]
    if positions is None and segment_ids is None:
        positions = jnp.maximum(order, 0)
    elif positions is None:
        positions = _positions_in_segments(segments, real, cache)

    if cache is None:
        slots, key_order, key_segments, key_positions = None, order, segments, positions
        arrived = causal_mask(queries)[None] & real[:, None, :]
    else:
        slots = jnp.where(real & (order < keys), order, keys)
        key_order = jnp.broadcast_to(jnp.arange(keys), (batch, keys))
        key_segments = _put(cache.segment_ids, slots, segments)
        key_positions = _put(cache.positions, slots, positions)
        arrived = key_order[:, None, :] <= order[:, :, None]
        cache = dataclasses.replace(
            cache,
            lengths=cache.lengths + real.sum(axis=1, dtype=jnp.int32),
            positions=key_positions,
            segment_ids=key_segments,
        )

    same = segments[:, :, None] == key_segments[:, None, :]  # [B, T, S]
    visible = (arrived & same & real[:, :, None])[:, None]  # [B, 1, T, S]
    if pairs is not None:
        visible = visible & broadcast_mask(pairs, batch, num_heads, queries, keys)
    context = Context(
        positions=positions,
        key_positions=key_positions,
        distance=order[:, :, None] - key_order[:, None, :],
        mask=visible,
        slots=slots,
        is_training=is_training,
        return_attention=return_attention,
    )
    return context, cache


def _check_padding(real: jax.Array, batch: int, queries: int) -> None:
    if real.shape != (batch, queries) or real.dtype != jnp.bool_:
        raise ValueError(
            f"mask with two axes must be bool [B, T] = [{batch}, {queries}] and say "
            f"which tokens are real, got {real.dtype} {list(real.shape)}"
        )


def _positions_in_segments(
    segments: jax.Array, real: jax.Array, cache: KVCache | None
) -> jax.Array:
    """Returns how many real tokens of its own segment came before each token."""
    queries = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    earlier = causal_mask(queries) & ~jnp.eye(queries, dtype=bool)
    before = earlier[None] & real[:, None, :]
    count = (same & before).sum(axis=-1, dtype=jnp.int32)
    if cache is None:
        return count
    stored = jnp.arange(cache.capacity)[None] < cache.lengths[:, None]  # [B, S]
    past = (segments[:, :, None] == cache.segment_ids[:, None, :]) & stored[:, None, :]
    return count + past.sum(axis=-1, dtype=jnp.int32)


def _put(old: jax.Array, slots: jax.Array, new: jax.Array) -> jax.Array:
    """Returns ``[B, S]`` with ``[B, T]`` new values in their slots."""
    rows = jnp.arange(old.shape[0])[:, None]
    return old.at[rows, slots].set(new.astype(old.dtype), mode="drop")
