"""The numbers of a ``Sampling`` as arrays, and what penalties count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation.sampling import Sampling

# What a dial says where it is off: temperature in a greedy row, filters that keep all.
_NEUTRAL = {
    "temperature": 0.0,
    "top_k": 2**31 - 1,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Dials(NamedTuple):
    """The numbers of each row as arrays, so that turning one recompiles nothing.

    Each is ``[B]``, a number a row (or ``[1]``, one for all). What no row has on is
    ``None``: it costs nothing.

    Attributes:
      temperature: float32; 0 is greedy in that row. ``None``: greedy in every row.
      top_k: int32.
      top_p: float32.
      min_p: float32.
      typical_p: float32.
      repetition_penalty: float32.
      presence_penalty: float32.
      frequency_penalty: float32.
      bias_ids: int32 ``[B, E]``, the tokens that have a bias.
      bias: float32 ``[B, E]``; 0 at places that a row does not need.
    """

    temperature: jax.Array | None = None
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    typical_p: jax.Array | None = None
    repetition_penalty: jax.Array | None = None
    presence_penalty: jax.Array | None = None
    frequency_penalty: jax.Array | None = None
    bias_ids: jax.Array | None = None
    bias: jax.Array | None = None

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocab_size: int) -> Dials:
        """Returns the dials of rows, with what no row has on left out.

        Args:
          samplings: One for each row.
          vocab_size: V.

        Returns:
          The dials; none at all where every row is greedy and nothing else.

        Raises:
          ValueError: A ``logit_bias`` names a token that is none.
        """
        room = max((len(s.logit_bias or ()) for s in samplings), default=0)
        all_on = cls.all_on(samplings, vocab_size, max_biases=room)
        on = {name for name in _NEUTRAL if any(_has_on(s, name) for s in samplings)}
        on |= {"bias_ids", "bias"} if room else set()
        return cls(**{name: getattr(all_on, name) for name in on})

    @classmethod
    def all_on(
        cls, samplings: Sequence[Sampling], vocab_size: int, max_biases: int = 64
    ) -> Dials:
        """Returns dials of which none is ``None``, whatever the rows ask for.

        Rows can then come and go without anything being compiled anew.

        Args:
          samplings: One for each row.
          vocab_size: V.
          max_biases: E, room for this many biased tokens a row.

        Returns:
          The dials, neutral where a row does not have one on.

        Raises:
          ValueError: A ``logit_bias`` names a token that is none, or holds more than
            ``max_biases``.

        Example:
          >>> from haiku_mqa import Sampling
          >>> Dials.all_on([Sampling(top_k=3), Sampling()], 256).top_k.tolist()
          [3, 256]
        """
        dials = {
            # Of a list, jnp.asarray would compile a program for each dial.
            name: jax.device_put(
                np.array(
                    [_value(sampling, name, vocab_size) for sampling in samplings],
                    np.int32 if name == "top_k" else np.float32,
                )
            )
            for name in _NEUTRAL
        }
        ids, bias = _sparse_bias(samplings, vocab_size, max_biases)
        return cls(**dials, bias_ids=ids, bias=bias)

    @property
    def needs_counts(self) -> bool:
        """Whether a penalty is on, so that tokens have to be counted."""
        penalties = (
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        )
        return any(penalty is not None for penalty in penalties)


class Counts(NamedTuple):
    """Which tokens each row holds, for penalties.

    Attributes:
      prompt: bool ``[B, V]``, whether a token stands in the prompt.
      generated: int32 ``[B, V]``, how often it was chosen since.
    """

    prompt: jax.Array
    generated: jax.Array

    @classmethod
    def of(cls, tokens: jax.Array, real: jax.Array, vocab_size: int) -> Counts:
        """Returns the counts of prompts, of which nothing was generated yet.

        Args:
          tokens: int32 ``[B, T]``.
          real: bool ``[B, T]``, false at padding.
          vocab_size: V.

        Example:
          >>> counts = Counts.of(jnp.array([[2, 0]]), jnp.array([[True, False]]), 3)
          >>> counts.prompt.tolist()
          [[False, False, True]]
        """
        rows = jnp.arange(tokens.shape[0])[:, None]
        none = jnp.zeros((tokens.shape[0], vocab_size), jnp.int32)
        held = (none > 0).at[rows, jnp.where(real, tokens, vocab_size)]
        return cls(held.set(True, mode="drop"), none)

    def plus(self, token: jax.Array) -> Counts:
        """Returns the counts after one more token a row; below 0 is none."""
        rows = jnp.arange(token.shape[0])
        place = jnp.where(token < 0, self.generated.shape[-1], token)
        more = self.generated.at[rows, place].add(1, mode="drop")
        return self._replace(generated=more)


def _has_on(sampling: Sampling, name: str) -> bool:
    if sampling.is_greedy and not name.endswith("_penalty"):
        return False  # no filter takes the likeliest token away
    value = getattr(sampling, name)
    return value is not None and value != _NEUTRAL[name]


def _value(sampling: Sampling, name: str, vocab_size: int) -> float:
    value = getattr(sampling, name) if _has_on(sampling, name) else _NEUTRAL[name]
    return min(value, vocab_size) if name == "top_k" else value


def _sparse_bias(
    samplings: Sequence[Sampling], vocab_size: int, room: int
) -> tuple[jax.Array, jax.Array]:
    # Sizes are powers of two, so that few programs are compiled.
    size = (len(samplings), 1 << max(room - 1, 0).bit_length())
    ids, bias = np.zeros(size, np.int32), np.zeros(size, np.float32)
    for row, sampling in enumerate(samplings):
        biases = sampling.logit_bias or {}
        if len(biases) > room:
            raise ValueError(
                f"logit_bias must hold at most {room} tokens, got {len(biases)}"
            )
        for place, (token, value) in enumerate(biases.items()):
            if token >= vocab_size:
                raise ValueError(
                    f"logit_bias must hold ids from 0 to {vocab_size - 1} "
                    f"(vocab_size = {vocab_size}), got {token}"
                )
            ids[row, place], bias[row, place] = token, value
    return jax.device_put(ids), jax.device_put(bias)
