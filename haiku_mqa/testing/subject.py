"""A decoder under test: its parameters, and its calls compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.cache import Int8Array, KVCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Model

BATCH = 3
LENGTH = 12
CAPACITY = 14  # of the cache, in tokens: more than are ever written


@dataclasses.dataclass(frozen=True)
class Remembering(Model):
    """A model whose caches are of another form than a static one.

    Attributes:
      config: What the decoder is.
      ring: Whether layers with a window keep no more than their window.
      cache_dtype: Of keys and values; the config's ``dtype`` if ``None``.

    Example:
      >>> from haiku_mqa.testing import BUCKETS
      >>> model = Remembering(BUCKETS["stretched"], ring=True)  # a window of 6
      >>> model.init_cache(1, 64).layers[0].keys.shape
      (1, 1, 6, 8)
    """

    ring: bool = False
    cache_dtype: str | None = None

    def init_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        *,
        ring: bool = False,
    ) -> KVCache:
        """Returns an empty cache of the form.

        Args:
          batch_size: B, rows.
          max_length: S, room for each row in tokens; the config's if ``None``.
          dtype: Of keys and values; the form's if ``None``.
          ring: Whether there are rings in any case.

        Returns:
          The cache.
        """
        return super().init_cache(
            batch_size, max_length, dtype or self.cache_dtype, ring=ring or self.ring
        )


class Subject:
    """Any decoder that keeps the contract of ``zoo.ModelSpec``, made ready for laws.

    Attributes:
      decoder: What was given.
      vocab_size: V.
      params: Parameters, every one of them disturbed, so that no bias is zero and
        no scale one.
      config: The ``DecoderConfig`` where the decoder has one, else ``None``.
    """

    def __init__(self, decoder: Any, params: Any = None):
        """Draws parameters where none are given.

        Args:
          decoder: Has ``init``, ``apply``, ``init_cache`` and a ``config`` with
            ``vocab_size``.
          params: Parameters to test with; drawn if ``None``.

        Raises:
          ValueError: The decoder lacks one of these.
        """
        for name in ("init", "apply", "init_cache", "config"):
            if not hasattr(decoder, name):
                raise ValueError(
                    f"decoder must have init, apply, init_cache and config, and "
                    f"{type(decoder).__name__} has no {name}"
                )
        if not hasattr(decoder.config, "vocab_size"):
            raise ValueError("decoder.config must have vocab_size")
        self.decoder = decoder
        self.vocab_size = int(decoder.config.vocab_size)
        self.config = (
            decoder.config if isinstance(decoder.config, DecoderConfig) else None
        )
        if params is None:
            tokens = jnp.zeros((BATCH, LENGTH), jnp.int32)
            params = disturb(jax.jit(decoder.init)(jax.random.key(0), tokens))
        self.params = params

    @property
    def is_ours(self) -> bool:
        """Whether the parameters are under this package's paths."""
        return self.config is not None and "decoder_lm/embed" in self.params

    @property
    def model(self) -> Model:
        """The decoder as this package's ``Model``; only where it has such a config."""
        if self.config is None:
            raise ValueError("the decoder's config is not a DecoderConfig")
        ours = isinstance(self.decoder, Model)
        return self.decoder if ours else Model(self.config)

    @functools.cached_property
    def is_coarse(self) -> bool:
        """Whether the cache is in int8, and so rounds what it remembers."""
        cache = self.empty_cache()
        return isinstance(cache, KVCache) and isinstance(
            cache.layers[0].keys, Int8Array
        )

    def tokens(self, seed: int, rows: int = BATCH, length: int = LENGTH) -> np.ndarray:
        """Returns random tokens, int32 ``[rows, length]``."""
        draw = np.random.default_rng(seed)
        return draw.integers(0, self.vocab_size, (rows, length), dtype=np.int32)

    def others(self, seed: int, tokens: np.ndarray) -> np.ndarray:
        """Returns random tokens, of which none is the one in its place."""
        draw = np.random.default_rng(seed)
        shifts = draw.integers(1, max(2, self.vocab_size), tokens.shape, dtype=np.int32)
        return (tokens + shifts) % self.vocab_size

    def logits(self, tokens: np.ndarray, **arguments: Any) -> np.ndarray:
        """Returns the compiled full forward's logits, ``[B, T, V]``."""
        return np.asarray(self._full(self.params, tokens, arguments))

    def step(self, tokens: np.ndarray, cache: Any, **arguments: Any) -> Any:
        """Returns the compiled cached call's output."""
        return _Output(*self._step(self.params, tokens, cache, arguments))

    def empty_cache(self, rows: int = BATCH, capacity: int = CAPACITY) -> Any:
        """Returns an empty cache."""
        return self.decoder.init_cache(rows, capacity)

    @functools.cached_property
    def _full(self) -> Callable[..., jax.Array]:
        apply = self.decoder.apply
        return jax.jit(
            lambda params, tokens, arguments: (
                apply(params, None, tokens, **arguments).logits
            )
        )

    @functools.cached_property
    def _step(self) -> Callable[..., Any]:
        apply = self.decoder.apply

        # What a decoder returns need not be a pytree; what it holds must be.
        def step(params: Any, tokens: Any, cache: Any, arguments: Any) -> Any:
            out = apply(params, None, tokens, cache=cache, **arguments)
            return out.logits, out.cache

        return jax.jit(step)


class _Output(NamedTuple):
    logits: jax.Array
    cache: Any


def disturb(params: Any, scale: float = 0.1) -> Any:
    """Returns parameters with normal noise added to each.

    Args:
      params: Any tree of arrays.
      scale: Standard deviation of the noise.

    Returns:
      A tree of the same shapes and dtypes.

    Example:
      >>> float(disturb({"norm": {"scale": jnp.ones(3)}})["norm"]["scale"].std()) > 0
      True
    """
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(0)
    noisy = [
        leaf + jnp.asarray(scale * draw.standard_normal(leaf.shape), leaf.dtype)
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, noisy)
