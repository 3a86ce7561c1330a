"""What a decoder remembers of each row."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from haiku_mqa._arguments import check_count
from haiku_mqa.cache.int8 import Int8Array
from haiku_mqa.cache.layers import LayerCache, RingCache, Stored
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import unknown_name

_DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """What a decoder remembers of each row: a pytree to donate, scan, shard, save.

    Row b holds its tokens in slots 0 to ``lengths[b] - 1``, whatever padding they
    came with: padding is never stored. A token past the last slot is dropped and
    still counted, so that ``overflowed`` tells of it and no history is lost.

    Layers that are rings hold the last tokens only. Where all are, a row never runs
    out of room: the n-th token lies in slot ``n % S``, over one that none can see.

    Attributes:
      layers: One ``LayerCache`` a layer; a ``RingCache`` where it holds no more than
        its window.
      lengths: int32 ``[B]``, tokens read by each row.
      positions: int32 ``[B, S]``, the position of the token in each slot.
      segment_ids: int32 ``[B, S]``, the segment of the token in each slot.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> cache = init_cache(config, batch_size=2, max_length=16)
      >>> cache.layers[0].keys.shape, cache.capacity, cache.lengths.tolist()
      ((2, 1, 16, 8), 16, [0, 0])
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
    def endless(self) -> bool:
        """Whether every layer is a ring, so that a row never runs out of room."""
        return all(layer.window is not None for layer in self.layers)

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows of the layers that are rings, each once, in tokens."""
        return tuple(sorted({w for x in self.layers if (w := x.window) is not None}))

    @property
    def overflowed(self) -> jax.Array:
        """Bool ``[B]``: which rows were given more tokens than they have room for."""
        full = self.lengths > self.capacity
        return jnp.zeros_like(full) if self.endless else full

    @property
    def stored(self) -> jax.Array:
        """int32 ``[B]``: the tokens read by each row that found room."""
        if self.endless:
            return self.lengths
        return jnp.minimum(self.lengths, self.capacity)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes up, book-keeping included."""
        leaves = jax.tree.leaves(self)
        return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)

    def rows(self, indices: Sequence[int] | np.ndarray | jax.Array) -> KVCache:
        """Returns chosen rows, in any order and as often as they are named.

        Args:
          indices: ``[R]``, each from 0 to B - 1.

        Returns:
          A cache of R rows.

        Raises:
          ValueError: An index is out of range, or there is none.

        Example:
          >>> config = DecoderConfig(
          ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
          >>> init_cache(config, batch_size=1, max_length=16).rows([0, 0, 0]).batch_size
          3
        """
        chosen = _whole_numbers("indices", indices, self.batch_size - 1)
        return jax.tree.map(lambda leaf: leaf[chosen], self)

    def rolled_back(self, lengths: Sequence[int] | np.ndarray | jax.Array) -> KVCache:
        """Returns the cache as if each row had read no more than its first tokens.

        What lies behind them is not wiped out, but is seen by none and written over.

        Args:
          lengths: ``[B]``, how many tokens each row keeps, up to what it has.

        Returns:
          The cache.

        Raises:
          ValueError: A row has fewer tokens, or lengths are not ``[B]``; or a layer
            is a ring, which has already forgotten what would have to come back.

        Example:
          >>> config = DecoderConfig(
          ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
          >>> cache = init_cache(config, batch_size=2, max_length=16)
          >>> read = dataclasses.replace(cache, lengths=jnp.array([5, 3]))
          >>> read.rolled_back([4, 3]).lengths.tolist()
          [4, 3]
        """
        rings = [str(n) for n, x in enumerate(self.layers) if x.window is not None]
        if rings:
            raise ValueError(
                f"rolled_back needs layers that keep all tokens; rings, which keep the "
                f"last ones only, are layers {', '.join(rings)}: make the cache with "
                "ring=False"
            )
        kept = _whole_numbers("lengths", lengths, None)
        if kept.shape != (self.batch_size,):
            raise ValueError(
                f"lengths must be one for each of {self.batch_size} rows, got shape "
                f"{list(kept.shape)}"
            )
        if not isinstance(kept, Tracer) and not isinstance(self.lengths, Tracer):
            held = np.asarray(self.stored)
            for row in np.flatnonzero(np.asarray(kept) > held):
                raise ValueError(
                    f"lengths must be from 0 to what each row holds, got {kept[row]} "
                    f"for row {row}, which holds {held[row]}"
                )
        return dataclasses.replace(self, lengths=kept.astype(self.lengths.dtype))

    def resized(self, max_length: int) -> KVCache:
        """Returns the cache with room for more tokens, or for fewer.

        An endless cache, which has room for any number, stays as it is.

        Args:
          max_length: S, room for each row in tokens.

        Returns:
          The cache; what rows hold is in it.

        Raises:
          ValueError: A row holds more than that.

        Example:
          >>> config = DecoderConfig(
          ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
          >>> init_cache(config, batch_size=1, max_length=16).resized(64).capacity
          64
        """
        check_count("max_length", max_length)
        if self.endless or max_length == self.capacity:
            return self
        longest, widest = int(self.lengths.max()), max(self.windows, default=1)
        if max_length < max(longest, widest):
            raise ValueError(
                f"max_length must be at least {longest}, what a row holds, and "
                f"{widest}, the widest ring, got {max_length}"
            )

        def fit(leaf: jax.Array, axis: int) -> jax.Array:
            more = max(0, max_length - leaf.shape[axis])
            widths = [(0, more if at == axis else 0) for at in range(leaf.ndim)]
            kept = jax.lax.slice_in_dim(leaf, 0, max_length - more, axis=axis)
            return jnp.pad(kept, widths)

        layers = [
            layer
            if layer.window is not None
            else jax.tree.map(functools.partial(fit, axis=2), layer)
            for layer in self.layers
        ]
        return KVCache(
            tuple(layers),
            self.lengths,
            fit(self.positions, axis=1),
            fit(self.segment_ids, axis=1),
        )


def init_cache(
    config: DecoderConfig,
    batch_size: int,
    max_length: int,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    ring: bool = False,
) -> KVCache:
    """Returns an empty cache.

    Args:
      config: The decoder that will fill it.
      batch_size: B, rows.
      max_length: S, room for each row in tokens.
      dtype: Of keys and values; the config's ``dtype`` if ``None``. ``"int8"`` keeps
        a byte for each number and four for each head of a token, its scale; a number
        is off by up to 1 / 254 of the greatest beside it.
      ring: Whether a layer with a sliding window W below S keeps W tokens, and not S.
        What is computed is the same, but for ``rolled_back``, which needs them all.

    Returns:
      The cache; ``2 * L * B * S * K * H`` numbers where keys and values are of one
      size and no layer is a ring.

    Raises:
      ValueError: ``batch_size`` or ``max_length`` is below one, or keys and values
        cannot be of that dtype.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256,
      ...     sliding_window=(32, None))
      >>> for cache in (
      ...     init_cache(config, 1, 1024),
      ...     init_cache(config, 1, 1024, ring=True),
      ...     init_cache(config, 1, 1024, "int8", ring=True),
      ... ):
      ...     print([layer.keys.shape[2] for layer in cache.layers], cache.nbytes)
      [1024, 1024] 139268
      [32, 1024] 75780
      [32, 1024] 33540
    """
    check_count("batch_size", batch_size)
    check_count("max_length", max_length)
    if not isinstance(ring, bool):
        raise ValueError(f"ring must be True or False, got {ring!r}")
    name = checked_dtype("dtype", config.dtype if dtype is None else dtype)

    def stored(slots: int, size: int) -> Stored:
        shape = (batch_size, config.num_kv_heads, slots, size)
        if name == "int8":
            return Int8Array(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1]))
        return jnp.zeros(shape, name)

    def layer(window: int | None) -> LayerCache:
        if not ring or window is None or window >= max_length:
            kind, slots = LayerCache, max_length
        else:
            kind, slots = RingCache, window
        return kind(stored(slots, config.key_size), stored(slots, config.value_size))

    rows = (batch_size, max_length)
    return KVCache(
        # Each layer has arrays of its own: a buffer can be donated only once.
        layers=tuple(layer(window) for window in config.windows),
        lengths=jnp.zeros(batch_size, jnp.int32),
        positions=jnp.zeros(rows, jnp.int32),
        segment_ids=jnp.zeros(rows, jnp.int32),
    )


def checked_dtype(field: str, dtype: Any) -> str:
    """Returns the name of a dtype that keys and values can be of.

    Args:
      field: What the user calls it.
      dtype: Its name, or itself.

    Raises:
      ValueError: They cannot be of that dtype; names the nearest.

    Example:
      >>> checked_dtype("dtype", jnp.bfloat16)
      'bfloat16'
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise unknown_name(field, name, _DTYPES)
    return name


def _whole_numbers(name: str, values: Any, most: int | None) -> jax.Array:
    """Returns numbers of rows or tokens, checked where they can be seen."""
    seen = values if isinstance(values, jax.Array) else np.asarray(values)
    if seen.ndim != 1 or not seen.size or not jnp.issubdtype(seen.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be a list of whole numbers, at least one, got {values!r}"
        )
    if not isinstance(seen, Tracer):
        array = np.asarray(seen)
        wrong = (array < 0) | (array > most if most is not None else False)
        if wrong.any():
            allowed = ">= 0" if most is None else f"from 0 to {most}"
            raise ValueError(f"{name} must be {allowed}, got {array[wrong][0]}")
    return jnp.asarray(seen, jnp.int32)
