"""The memory of the past: keys and values of the tokens that were read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from haiku_mqa.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """What one layer remembers.

    Attributes:
      keys: ``[B, S, K, H]``, after rotary positions.
      values: ``[B, S, K, v]``.

    Example:
      >>> empty = LayerCache(jnp.zeros((1, 4, 1, 2)), jnp.zeros((1, 4, 1, 2)))
      >>> one = jnp.ones((1, 1, 1, 2))
      >>> empty.write(jnp.array([[2]]), one, one).keys[0, :, 0, 0].tolist()
      [0.0, 0.0, 1.0, 0.0]
    """

    keys: jax.Array
    values: jax.Array

    def write(self, slots: jax.Array, keys: jax.Array, values: jax.Array) -> LayerCache:
        """Returns the cache with new tokens in their slots.

        Args:
          slots: int32 ``[B, T]``; a slot of S or more is dropped.
          keys: ``[B, T, K, H]``.
          values: ``[B, T, K, v]``.

        Returns:
          The cache after these tokens, in the dtype it had.
        """
        rows = jnp.arange(slots.shape[0])[:, None]

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            # Slots only grow along a row, and none is written twice.
            return old.at[rows, slots].set(new.astype(old.dtype), mode="drop")

        return LayerCache(put(self.keys, keys), put(self.values, values))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """What a decoder remembers of each row: a pytree to donate, scan, shard, save.

    Row b holds its tokens in slots 0 to ``lengths[b] - 1``, whatever padding they
    came with: padding is never stored. A token past the last slot is dropped and
    still counted, so that ``overflowed`` tells of it and no history is lost.

    Attributes:
      layers: One ``LayerCache`` a layer.
      lengths: int32 ``[B]``, tokens read by each row.
      positions: int32 ``[B, S]``, the position of the token in each slot.
      segment_ids: int32 ``[B, S]``, the segment of the token in each slot.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> cache = init_cache(config, batch_size=2, max_length=16)
      >>> cache.layers[0].keys.shape, cache.capacity, cache.lengths.tolist()
      ((2, 16, 1, 8), 16, [0, 0])
    """

    layers: tuple[LayerCache, ...]
    lengths: jax.Array
    positions: jax.Array
    segment_ids: jax.Array

    @property
    def batch_size(self) -> int:
        """B, how many rows there are."""
        return self.positions.shape[0]

    @property
    def capacity(self) -> int:
        """S, how many tokens each row has room for."""
        return self.positions.shape[1]

    @property
    def overflowed(self) -> jax.Array:
        """Bool ``[B]``: which rows were given more tokens than they have room for."""
        return self.lengths > self.capacity


def init_cache(
    config: DecoderConfig,
    batch_size: int,
    max_length: int,
    dtype: jax.typing.DTypeLike | None = None,
) -> KVCache:
    """Returns an empty cache.

    Args:
      config: The decoder that will fill it.
      batch_size: B, rows.
      max_length: S, room for each row in tokens.
      dtype: Of keys and values; the config's ``dtype`` if ``None``.

    Returns:
      The cache; ``2 * L * B * S * K * H`` numbers where keys and values are of one
      size.

    Raises:
      ValueError: ``batch_size`` or ``max_length`` is below one.
    """
    for name, size in (("batch_size", batch_size), ("max_length", max_length)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {size}")
    dtype = jnp.dtype(dtype or config.dtype)
    rows = (batch_size, max_length)
    keys = (*rows, config.num_kv_heads, config.key_size)
    values = (*rows, config.num_kv_heads, config.value_size)
    return KVCache(
        # Each layer has arrays of its own: a buffer can be donated only once.
        layers=tuple(
            LayerCache(jnp.zeros(keys, dtype), jnp.zeros(values, dtype))
            for _ in range(config.num_layers)
        ),
        lengths=jnp.zeros(batch_size, jnp.int32),
        positions=jnp.zeros(rows, jnp.int32),
        segment_ids=jnp.zeros(rows, jnp.int32),
    )
