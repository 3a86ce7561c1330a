"""What was read once: the start of many texts, or a conversation so far."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import check_count, differences, whole_number
from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.cache import KVCache
from haiku_mqa.cache_file import read_cache_file, save_cache
from haiku_mqa.checks import check_params, check_tokens
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Model, Params

_CHUNK = 512  # tokens read by one call
_LEAST = 16  # of the lengths that calls are padded to


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that a model has read, and what it remembers of them.

    It is never changed: a prefix can be continued many times, in many ways.

    Attributes:
      tokens: What was read.
      cache: The model's, one row.
      logits: float32 ``[V]``, of the token that comes next.
      model: That read it.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> prefix = read_prefix(model, params, [1, 2, 3])
      >>> longer = prefix.extended(model, params, [4, 5])
      >>> prefix.tokens, longer.tokens, longer.cache.lengths.tolist()
      ((1, 2, 3), (1, 2, 3, 4, 5), [5])
    """

    tokens: tuple[int, ...]
    cache: KVCache
    logits: jax.Array
    model: Model

    def extended(self, model: Model, params: Params, tokens: Sequence[int]) -> Prefix:
        """Returns the prefix with more tokens, of which only those are read.

        Args:
          model: That read it.
          params: That it was read with.
          tokens: What follows, at least one.

        Returns:
          The longer prefix, the same as if all of it were read at once.

        Raises:
          ValueError: A token is out of range, there is none, or all of them are more
            than the model's ``max_length``; or another model read the prefix.
          FloatingPointError: The model's logits were NaN.
        """
        check_owner("prefix", self, model)
        new = _checked(model, params, tokens, len(self.tokens))
        total = len(self.tokens) + len(new)
        cache = self.cache
        if total > cache.capacity:
            cache = cache.resized(_padded(total))
        logits = self.logits
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            padded = np.zeros((1, _padded(len(chunk))), np.int32)
            padded[0, : len(chunk)] = chunk
            cache, logits = _read(model, params, padded, jnp.int32(len(chunk)), cache)
        if bool(jnp.isnan(logits).any()):
            raise FloatingPointError(
                "the logits after the prefix are NaN; check the parameters with "
                "haiku_mqa.checks.check_finite"
            )
        return Prefix((*self.tokens, *new), cache, logits, model)

    def rows(self, batch_size: int, max_length: int) -> KVCache:
        """Returns a cache of which every row has read the prefix.

        Args:
          batch_size: B, how many texts are to follow.
          max_length: S, room for each row in tokens, the prefix's included; for an
            endless cache it does not matter.

        Returns:
          The cache; free to be donated.

        Raises:
          ValueError: A size is below one, or there is no room for the prefix.

        Example:
          >>> from haiku_mqa import DecoderConfig, build
          >>> model = build(DecoderConfig(
          ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
          >>> params = model.init(jax.random.key(0))
          >>> cache = read_prefix(model, params, [1, 2, 3]).rows(4, max_length=32)
          >>> cache.lengths.tolist(), cache.capacity
          ([3, 3, 3, 3], 32)
        """
        check_count("batch_size", batch_size)
        return self.cache.resized(max_length).rows([0] * batch_size)

    def save(self, path: str | os.PathLike[str], model: Model, params: Params) -> None:
        """Writes the prefix; a crash leaves the file as it was, or whole.

        Args:
          path: Of the file; what is there is replaced.
          model: That read it.
          params: That it was read with.

        Raises:
          ValueError: The parameters or the cache do not fit the model.
          OSError: It cannot be written.
        """
        tokens = np.asarray(self.tokens, np.int32)
        extra = {"tokens": tokens, "logits": self.logits}
        save_cache(path, self.cache, model, params, extra)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model, params: Params) -> Prefix:
        """Returns the prefix that ``save`` wrote.

        Args:
          path: Of the file.
          model: That must have read it.
          params: That it must have been read with.

        Returns:
          The prefix, bit for bit.

        Raises:
          FormatError: The file is damaged, or is no prefix.
          ValueError: Another model made it, or other parameters.
          OSError: It cannot be read.
        """
        cache, extra = read_cache_file(path, model, params)
        tokens, logits = extra.get("tokens"), extra.get("logits")
        whole = (
            tokens is not None
            and logits is not None
            and (tokens.dtype, logits.dtype) == (np.int32, np.float32)
            and logits.shape == (model.config.vocab_size,)
            and tokens.ndim == 1
            and cache.lengths.tolist() == [tokens.size]
        )
        if not whole or tokens is None:
            raise FormatError(
                f"{path} is no prefix: it must hold one row, its tokens and the "
                "logits after them"
            )
        check_tokens("tokens", tokens[None], model.config.vocab_size)
        return cls(tuple(tokens.tolist()), cache, jnp.asarray(logits), model)


def read_prefix(
    model: Model,
    params: Params,
    tokens: Sequence[int],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    ring: bool = False,
) -> Prefix:
    """Reads tokens once, for all the texts that begin with them.

    Args:
      model: The model.
      params: Its parameters.
      tokens: What to read, at least one.
      dtype: Of the cache, as ``Model.init_cache``.
      ring: Of the cache, as ``Model.init_cache``.

    Returns:
      The prefix.

    Raises:
      ValueError: A token is out of range, there is none, or there are more than the
        model's ``max_length``.
      FloatingPointError: The model's logits were NaN.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> read_prefix(model, params, [1, 2, 3]).logits.shape
      (256,)
    """
    new = _checked(model, params, tokens, 0)
    # A window beyond the room there is would make no ring, and room is added later.
    widest = max([w for w in model.config.windows if w and ring], default=0)
    room = _padded(max(len(new), widest + 1))
    cache = model.init_cache(1, room, dtype, ring=ring)
    empty = Prefix((), cache, jnp.zeros(model.config.vocab_size), model)
    return empty.extended(model, params, new)


def check_owner(name: str, prefix: Prefix, model: Model) -> None:
    """Raises ``ValueError`` where another model read a prefix.

    Args:
      name: What to call the prefix.
      prefix: What was read.
      model: That is to go on from it.

    Raises:
      ValueError: Names the fields of the config that differ.
    """
    if prefix.model != model:
        theirs, ours = prefix.model.config.to_dict(), model.config.to_dict()
        raise ValueError(
            f"{name} must be what this model read, and another did: "
            f"{differences(theirs, ours)}"
        )


@functools.partial(jax.jit, static_argnames="model", compiler_options=COMPILER_OPTIONS)
def _read(
    model: Model, params: Params, tokens: jax.Array, length: jax.Array, cache: KVCache
) -> tuple[KVCache, jax.Array]:
    real = jnp.arange(tokens.shape[1])[None] < length
    out = model.apply(
        params, None, tokens, mask=real, cache=cache, logits_at=length[None, None] - 1
    )
    return out.cache or cache, out.logits[0, 0]


def _padded(length: int) -> int:
    """Returns the least power of two that is at least a length, so programs are few."""
    return max(_LEAST, 1 << (length - 1).bit_length())


def _checked(
    model: Model, params: Params, tokens: Sequence[int], before: int
) -> list[int]:
    if isinstance(tokens, str) or not hasattr(tokens, "__len__"):
        raise ValueError(f"tokens must be a list of token ids, got {tokens!r}")
    if not len(tokens):
        raise ValueError("tokens must hold at least one token id, got none")
    last = model.config.vocab_size - 1
    new = [
        whole_number(f"tokens[{n}]", token, 0, last) for n, token in enumerate(tokens)
    ]
    if before + len(new) > model.config.max_length:
        raise ValueError(
            f"tokens must leave the prefix within max_length = "
            f"{model.config.max_length}, got {len(new)} after {before}"
        )
    check_params(params, model.param_shapes)
    return new
