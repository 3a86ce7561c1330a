"""What all layers share during one call: who stands where, and who sees whom."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa.cache import KVCache, LayerCache, RingCache
from haiku_mqa.ops.masks import broadcast_mask, causal_mask


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions", "key_positions", "distance", "mask", "slots", "rings"),
    meta_fields=("is_training", "return_attention"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What attention needs to know beside its inputs.

    Made once a call by ``make_context``; training, prefill and decode differ in
    nothing else. It is a pytree, of which the last two are no leaves.

    Attributes:
      positions: int32 ``[B, T]``, where each query's token stands.
      key_positions: int32 ``[B, S]``, where each key's token stands.
      distance: int32 ``[B, T, S]``, how many tokens each key is behind each query.
      mask: bool ``[B, N or 1, T, S]``, or ``None`` where all may attend to all.
      slots: int32 ``[B, T]``, where the cache stores each token; ``None`` without a
        cache. The cache's capacity means that it is not stored.
      rings: By window, the same for layers whose cache is a ring: S is then what
        such a layer attends to.
      is_training: Whether dropout acts.
      return_attention: Whether layers return their attention weights.
    """

    positions: jax.Array
    key_positions: jax.Array
    distance: jax.Array
    mask: jax.Array | None = None
    slots: jax.Array | None = None
    rings: Mapping[int, Context] = dataclasses.field(default_factory=dict)
    is_training: bool = False
    return_attention: bool = False

    def of(self, cache: LayerCache | None) -> Context:
        """Returns the context of one layer, by what that layer remembers."""
        window = None if cache is None else cache.window
        return self if window is None else self.rings[window]


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
        pairs may attend, in addition to causality. With a cache S is its capacity,
        whatever a ring keeps.
      cache: The past, if there is one.
      num_heads: N, to check a mask by heads.
      is_training: See ``Context``.
      return_attention: See ``Context``.

    Returns:
      The context, and the cache with its book-keeping (lengths, positions, segments)
      brought forward; its keys and values are written by the layers.
    """
    batch, queries = tokens.shape
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
    if pairs is not None:
        keys = queries if cache is None else cache.capacity
        pairs = broadcast_mask(pairs, batch, num_heads, queries, keys)
    read = _Tokens(order, positions, segments, real)

    def context(keys: _Keys) -> Context:
        same = segments[:, :, None] == keys.segments[:, None, :]  # [B, T, S]
        visible = (keys.arrived & same & real[:, :, None])[:, None]  # [B, 1, T, S]
        return Context(
            positions=positions,
            key_positions=keys.positions,
            distance=order[:, :, None] - keys.order[:, None, :],
            mask=visible if pairs is None else visible & keys.of_mask(pairs),
            slots=keys.slots,
            is_training=is_training,
            return_attention=return_attention,
        )

    if cache is None:
        return context(_own_keys(read)), None
    slots, after = _brought_forward(read, cache)
    rings = {
        w: context(_ring_keys(read, slots, cache, after, w)) for w in after.windows
    }
    if after.endless:  # no layer attends to more than its ring
        return dataclasses.replace(rings[max(rings)], rings=rings), after
    whole = context(_cached_keys(read, slots, after))
    return dataclasses.replace(whole, rings=rings), after


class _Tokens(NamedTuple):
    """The tokens of a call: ``[B, T]`` each."""

    order: jax.Array  # which token of its row each is, from zero
    positions: jax.Array
    segments: jax.Array
    real: jax.Array


class _Keys(NamedTuple):
    """What layers of one kind attend to: ``[B, S]`` each but where it is said."""

    order: jax.Array
    positions: jax.Array
    segments: jax.Array
    arrived: jax.Array  # [B, T, S], whether a query comes no earlier than a key
    slots: jax.Array | None  # [B, T], where the call's own tokens are stored
    columns: jax.Array | None = None  # of a mask, which stand in the cache's order

    def of_mask(self, pairs: jax.Array) -> jax.Array:
        """Returns the columns of a mask in the order of these keys."""
        if self.columns is None:
            return pairs
        return jnp.take_along_axis(pairs, self.columns[:, None, None], axis=-1)


def _own_keys(read: _Tokens) -> _Keys:
    """The tokens of the call, where there is no past."""
    arrived = causal_mask(read.real.shape[1])[None] & read.real[:, None, :]
    return _Keys(read.order, read.positions, read.segments, arrived, None)


def _brought_forward(read: _Tokens, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Returns the slot of each token, and the cache with its book-keeping done."""
    room = cache.capacity
    lengths = cache.lengths + read.real.sum(axis=1, dtype=jnp.int32)
    if cache.endless:
        slots = jnp.where(read.real, RingCache.slots(read.order, lengths, room), room)
    else:
        slots = jnp.where(read.real & (read.order < room), read.order, room)
    after = dataclasses.replace(
        cache,
        lengths=lengths,
        positions=_put(cache.positions, slots, read.positions),
        segment_ids=_put(cache.segment_ids, slots, read.segments),
    )
    return slots, after


def _cached_keys(read: _Tokens, slots: jax.Array, after: KVCache) -> _Keys:
    """All that is in the cache, the tokens of the call included."""
    batch, keys = after.positions.shape
    order = jnp.broadcast_to(jnp.arange(keys), (batch, keys))
    arrived = order[:, None, :] <= read.order[:, :, None]
    return _Keys(order, after.positions, after.segment_ids, arrived, slots)


def _ring_keys(
    read: _Tokens, slots: jax.Array, before: KVCache, after: KVCache, window: int
) -> _Keys:
    """A ring's tokens; where more than one is read, its old ones and then the new."""
    alone = read.real.shape[1] == 1
    held = after if alone else before
    order = RingCache.orders(held.stored, window)  # [B, W]
    columns = jnp.maximum(order, 0) % held.capacity
    positions = jnp.take_along_axis(held.positions, columns, axis=1)
    segments = jnp.take_along_axis(held.segment_ids, columns, axis=1)
    there, kept = order >= 0, _has_room(read, after)
    if not alone:
        order = jnp.concatenate([order, read.order], axis=1)
        columns = jnp.concatenate([columns, slots % held.capacity], axis=1)
        positions = jnp.concatenate([positions, read.positions], axis=1)
        segments = jnp.concatenate([segments, read.segments], axis=1)
        there = jnp.concatenate([there, kept], axis=1)
    arrived = there[:, None, :] & (order[:, None, :] <= read.order[:, :, None])
    ring_slots = RingCache.slots(read.order, after.stored, window)
    return _Keys(
        order,
        positions,
        segments,
        arrived,
        jnp.where(kept, ring_slots, window),
        columns,
    )


def _has_room(read: _Tokens, cache: KVCache) -> jax.Array:
    """Returns which tokens of a call are stored by some layer: bool ``[B, T]``."""
    return read.real if cache.endless else read.real & (read.order < cache.capacity)


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
    if cache.endless:
        stored = RingCache.orders(cache.lengths, cache.capacity) >= 0  # [B, S]
    else:
        stored = jnp.arange(cache.capacity)[None] < cache.lengths[:, None]
    past = (segments[:, :, None] == cache.segment_ids[:, None, :]) & stored[:, None, :]
    if cache.endless:
        # Those of a segment that were written over can no longer be counted; the
        # last of them tells how many there were.
        return count + jnp.where(past, cache.positions[:, None] + 1, 0).max(axis=-1)
    return count + past.sum(axis=-1, dtype=jnp.int32)


def _put(old: jax.Array, slots: jax.Array, new: jax.Array) -> jax.Array:
    """Returns ``[B, S]`` with ``[B, T]`` new values in their slots."""
    rows = jnp.arange(old.shape[0])[:, None]
    return old.at[rows, slots].set(new.astype(old.dtype), mode="drop")
