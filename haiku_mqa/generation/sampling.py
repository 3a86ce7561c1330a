"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Filters act in this order: temperature, top-k, top-p.

    Attributes:
      temperature: Divides the logits; 0 is greedy, the likeliest token always. Else
        at least 1e-5: what is smaller is greedy but for rounding.
      top_k: How many of the likeliest tokens stay in play; ``None`` is all.
      top_p: The likeliest tokens whose probabilities first reach this sum stay in
        play, in (0, 1] (Holtzman et al. 2019); ``None`` is all.

    Raises:
      ValueError: A field is out of what is allowed.

    Example:
      >>> Sampling(temperature=0.0).is_greedy
      True
      >>> Sampling(top_p=1.5)
      Traceback (most recent call last):
      ValueError: top_p must be in (0, 1], got 1.5
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 1e-5 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be 0 or a number >= 1e-5, got {self.temperature}"
            )
        if self.top_k is not None and (
            isinstance(self.top_k, bool)
            or not isinstance(self.top_k, int)
            or self.top_k < 1
        ):
            raise ValueError(f"top_k must be a whole number >= 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, and no rng needed."""
        return self.temperature == 0


class Dials(NamedTuple):
    """The numbers of a ``Sampling`` as arrays, so that turning one recompiles nothing.

    A filter that is off is ``None``: it costs nothing.
    """

    temperature: jax.Array | None
    top_k: jax.Array | None
    top_p: jax.Array | None

    @classmethod
    def of(cls, sampling: Sampling) -> Dials:
        """Returns the dials of a ``Sampling``."""
        if sampling.is_greedy:
            return cls(None, None, None)

        def dial(value: float | None, dtype: type) -> jax.Array | None:
            return None if value is None else jnp.asarray(value, dtype)

        return cls(
            dial(sampling.temperature, jnp.float32),
            dial(sampling.top_k, jnp.int32),
            dial(sampling.top_p, jnp.float32),
        )


def choose(logits: jax.Array, dials: Dials, rngs: jax.Array | None) -> jax.Array:
    """Chooses one token a row.

    Args:
      logits: float32 ``[B, V]``.
      dials: How to choose.
      rngs: PRNG keys ``[B]``, one a row; ``None`` where the choice is greedy.

    Returns:
      int32 ``[B]``; -1 where a row's logits hold NaN, for which no token is right.

    Example:
      >>> logits = jnp.array([[0.0, 2.0, 1.0]])
      >>> choose(logits, Dials.of(Sampling(temperature=0.0)), None).tolist()
      [1]
    """
    if dials.temperature is None or rngs is None:
        tokens = logits.argmax(axis=-1)
    else:
        noise = jax.vmap(lambda rng: jax.random.gumbel(rng, logits.shape[1:]))(rngs)
        tokens = (filtered(logits, dials) + noise).argmax(axis=-1)
    broken = jnp.isnan(logits).any(axis=-1)
    return jnp.where(broken, -1, tokens).astype(jnp.int32)


def filtered(logits: jax.Array, dials: Dials) -> jax.Array:
    """Returns ``[B, V]`` logits over temperature, -inf where a token is out of play."""
    if dials.temperature is not None:
        # The largest is zero first: a small temperature then overflows nothing that
        # could still be chosen.
        logits = logits - logits.max(axis=-1, keepdims=True)
        logits = logits / dials.temperature
    if dials.top_k is None and dials.top_p is None:
        return logits
    ranked = jnp.sort(logits, axis=-1, descending=True)
    if dials.top_k is not None:
        last = jnp.minimum(dials.top_k, logits.shape[-1]) - 1
        least = jnp.take(ranked, last, axis=-1)[:, None]
        logits = jnp.where(logits < least, -jnp.inf, logits)
        ranked = jnp.where(ranked < least, -jnp.inf, ranked)
    if dials.top_p is not None:
        probabilities = jax.nn.softmax(ranked, axis=-1)
        before = probabilities.cumsum(axis=-1) - probabilities
        # The first is always in play, so that a small top_p is greedy, not empty.
        kept = jnp.where(before < dials.top_p, ranked, jnp.inf)
        least = kept.min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
