"""What one layer remembers: all tokens, or as many as its window reaches back."""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from haiku_mqa.cache.int8 import Int8Array

Stored = jax.Array | Int8Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """What one layer remembers: all the tokens that it has room for.

    Keys and values are arrays, or ``Int8Array`` where the cache is in int8. A head's
    tokens lie together, as attention reads them.

    Attributes:
      keys: ``[B, K, S, H]``, after rotary positions.
      values: ``[B, K, S, v]``.

    Example:
      >>> empty = LayerCache(jnp.zeros((1, 1, 4, 2)), jnp.zeros((1, 1, 4, 2)))
      >>> one = jnp.ones((1, 1, 1, 2))
      >>> empty.write(jnp.array([[2]]), one, one).keys[0, 0, :, 0].tolist()
      [0.0, 0.0, 1.0, 0.0]
    """

    keys: Stored
    values: Stored

    @property
    def window(self) -> int | None:
        """How many tokens back are kept; ``None`` where all are."""
        return None

    def write(self, slots: jax.Array, keys: jax.Array, values: jax.Array) -> Self:
        """Returns the cache with new tokens in their slots.

        Args:
          slots: int32 ``[B, T]``; a slot of S or more is dropped.
          keys: ``[B, T, K, H]``.
          values: ``[B, T, K, v]``.

        Returns:
          The cache after these tokens, in the dtype it had.
        """
        return dataclasses.replace(
            self,
            keys=_put(self.keys, slots, keys),
            values=_put(self.values, slots, values),
        )

    def update(
        self, slots: jax.Array, keys: jax.Array, values: jax.Array
    ) -> tuple[Self, jax.Array, jax.Array]:
        """Writes new tokens, and tells what they may attend to.

        Args:
          slots: int32 ``[B, T]``, as ``write``.
          keys: ``[B, T, K, H]``.
          values: ``[B, T, K, v]``.

        Returns:
          The cache after these tokens; keys ``[B, S, K, H]`` and values, in the dtype
          of those given, in the order of the slots.
        """
        after = self.write(slots, keys, values)
        return (
            after,
            _by_token(after.keys.astype(keys.dtype)),
            _by_token(after.values.astype(values.dtype)),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RingCache(LayerCache):
    """What a layer with a sliding window remembers: the last W tokens.

    The n-th token of a row lies in slot ``n % W``, over the one that its window has
    just lost.

    Attributes:
      keys: ``[B, K, W, H]``, after rotary positions.
      values: ``[B, K, W, v]``.

    Example:
      >>> ring = RingCache(jnp.zeros((1, 1, 3, 2)), jnp.zeros((1, 1, 3, 2)))
      >>> ring.window, RingCache.orders(jnp.array([5]), window=3).tolist()
      (3, [[3, 4, 2]])
    """

    @property
    def window(self) -> int:
        """W, how many tokens back are kept, the newest included."""
        return self.keys.shape[2]

    @staticmethod
    def orders(lengths: jax.Array, window: int) -> jax.Array:
        """Returns which token of its row lies in each slot.

        Args:
          lengths: int32 ``[B]``, how many tokens were stored.
          window: W.

        Returns:
          int32 ``[B, W]``, from zero; below zero where there is none yet.
        """
        newest = lengths[:, None] - 1
        return newest - (newest - jnp.arange(window)[None]) % window

    @staticmethod
    def slots(orders: jax.Array, lengths: jax.Array, window: int) -> jax.Array:
        """Returns where tokens are kept.

        Args:
          orders: int32 ``[B, T]``, which token of its row each is, from zero.
          lengths: int32 ``[B]``, how many tokens there are after them.
          window: W.

        Returns:
          int32 ``[B, T]``; W where a token is out of reach for those to come, since
          no slot may be written twice.
        """
        kept = orders >= lengths[:, None] - window
        return jnp.where(kept, orders % window, window)

    def update(
        self, slots: jax.Array, keys: jax.Array, values: jax.Array
    ) -> tuple[Self, jax.Array, jax.Array]:
        """Writes new tokens, and tells what they may attend to.

        Args:
          slots: int32 ``[B, T]``, as ``write``.
          keys: ``[B, T, K, H]``.
          values: ``[B, T, K, v]``.

        Returns:
          The cache after these tokens; keys and values, in the dtype of those given.
          For T = 1 in the order of the slots, the new token among them. Otherwise
          ``[B, W + T, K, H]``, what was there before and then the new tokens, because
          the first of them still see what the last write over.
        """
        if slots.shape[1] == 1:
            return super().update(slots, keys, values)
        after = self.write(slots, keys, values)
        return after, _after_old(self.keys, keys), _after_old(self.values, values)


def _put(old: Stored, slots: jax.Array, new: jax.Array) -> Stored:
    """Returns ``[B, K, S, ...]`` with ``[B, T, K, ...]`` new ones in their slots."""
    put = _put_one if slots.size == 1 else _put_many
    return jax.tree.map(
        lambda old, new: put(old, slots, new.swapaxes(1, 2)), old, _as_stored(old, new)
    )


def _put_one(old: jax.Array, slots: jax.Array, new: jax.Array) -> jax.Array:
    # Neither a scatter, of which XLA makes a loop, nor an update alone, which it
    # would compute a second time for whoever reads the whole cache next.
    def branching(old: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
        return jax.lax.cond(
            slot < old.shape[2],
            lambda old: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=2),
            lambda old: old,
            old,
        )

    # An accelerator has the host take a branch, and waits for it, in every layer.
    return jax.lax.platform_dependent(
        *(old, new, slots[0, 0]), cpu=branching, default=_put_one_straight
    )


def _put_one_straight(old: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    there = jax.lax.dynamic_slice_in_dim(old, slot, 1, axis=2)
    kept = jnp.where(slot < old.shape[2], new, there)
    return jax.lax.dynamic_update_slice_in_dim(old, kept, slot, axis=2)


def _put_many(old: jax.Array, slots: jax.Array, new: jax.Array) -> jax.Array:
    # As one list of heads of tokens: a scatter into an inner axis would be made one
    # into the first by transposing all there is.
    batch, heads, size = old.shape[:3]
    first = jnp.arange(batch * heads).reshape(batch, heads, 1) * size
    places = jnp.where(slots < size, slots, old.size)[:, None] + first  # [B, K, T]
    flat = old.reshape(-1, *old.shape[3:])
    # Slots only grow along a row, or wrap, and none is written twice.
    flat = flat.at[places.reshape(-1)].set(new.reshape(-1, *new.shape[3:]), mode="drop")
    return flat.reshape(old.shape)


def _after_old(old: Stored, new: jax.Array) -> jax.Array:
    # New tokens too are seen as they are stored, so that it does not matter how a
    # text is cut into calls.
    stored = _as_stored(old, new).astype(new.dtype)
    return jnp.concatenate([_by_token(old.astype(new.dtype)), stored], axis=1)


def _by_token(x: jax.Array) -> jax.Array:
    """Returns ``[B, K, S, H]`` as ``[B, S, K, H]``, which attention turns back."""
    return x.swapaxes(1, 2)


def _as_stored(old: Stored, new: jax.Array) -> Stored:
    return Int8Array.of(new) if isinstance(old, Int8Array) else new.astype(old.dtype)
