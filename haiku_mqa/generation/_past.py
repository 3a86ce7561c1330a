"""What rows had read before their prompts, and the cache that they read into."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from haiku_mqa.cache import KVCache
from haiku_mqa.cache.kv_cache import checked_dtype
from haiku_mqa.generation._padding import bucket
from haiku_mqa.generation.loop import Before
from haiku_mqa.generation.prefix import Prefix, check_owner
from haiku_mqa.model import Model


@dataclasses.dataclass(frozen=True)
class Past:
    """What rows had read, and the form of their cache.

    Attributes:
      prefix: What all rows had read; ``None`` where they begin with their prompts.
      dtype: Of the cache, where there is no prefix; the model's if ``None``.
      ring: Whether the cache has rings, where there is no prefix.
    """

    prefix: Prefix | None
    dtype: str | None
    ring: bool

    @property
    def tokens(self) -> tuple[int, ...]:
        """What all rows had read."""
        return self.prefix.tokens if self.prefix else ()

    def joined(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Returns prompts, each behind what had been read."""
        return [[*self.tokens, *prompt] for prompt in prompts]

    def begun(
        self, model: Model, rows: int, length: int
    ) -> tuple[KVCache, Before | None]:
        """Returns a cache that has read the prefix, and what came of that.

        Args:
          model: The model.
          rows: P, how many prompts there are.
          length: How many tokens follow the prefix in the longest row, in the end.

        Returns:
          The cache, free to be donated, and what compiled code has to know of the
          prefix; ``None`` where there is none.
        """
        room = bucket(len(self.tokens) + length)
        if self.prefix is None:
            return _empty(model, rows, room, self.dtype, self.ring), None
        # A ring is no shorter for a text that is.
        widest = max(self.prefix.cache.windows, default=1)
        cache = self.prefix.rows(rows, max(room, widest))
        held = tokens_held(self.tokens, model.config.vocab_size)
        return cache, Before(held, self.prefix.logits)


# One program: array by array, the zeros of 30 layers take 5 ms, a tenth of a prompt.
@functools.partial(jax.jit, static_argnums=range(5))
def _empty(
    model: Model, rows: int, length: int, dtype: str | None, ring: bool
) -> KVCache:
    return model.init_cache(rows, length, dtype, ring=ring)


def tokens_held(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """Returns which tokens a text holds, bool ``[V]``.

    Args:
      tokens: The text.
      vocab_size: V.

    Example:
      >>> tokens_held([2, 0, 2], 4).tolist()
      [True, False, True, False]
    """
    held = np.zeros(vocab_size, bool)
    held[list(tokens)] = True
    return held


def checked_past(
    model: Model,
    prefix: Prefix | None,
    cache_dtype: jax.typing.DTypeLike | None,
    ring_cache: bool,
) -> Past:
    """Returns what rows had read and read into, or says what is wrong with it.

    Args:
      model: As ``generate``; likewise the rest.
      prefix: See there.
      cache_dtype: See there.
      ring_cache: See there.

    Raises:
      ValueError: The prefix is none, or another model's; or the cache is asked to be
        what it cannot be.
    """
    if not isinstance(ring_cache, bool):
        raise ValueError(f"ring_cache must be True or False, got {ring_cache!r}")
    name = None if cache_dtype is None else checked_dtype("cache_dtype", cache_dtype)
    if prefix is None:
        return Past(None, name, ring_cache)
    if not isinstance(prefix, Prefix):
        raise ValueError(
            f"prefix must be a Prefix, as read_prefix returns it, got {prefix!r}"
        )
    check_owner("prefix", prefix, model)
    given = "cache_dtype" if name else "ring_cache" if ring_cache else None
    if given:
        raise ValueError(
            f"{given} must be left out with prefix, whose cache goes on in the form "
            "that read_prefix gave it"
        )
    return Past(prefix, None, False)
