"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from haiku_mqa._arguments import check_positive, is_number, whole_number
from haiku_mqa.generation import _filters
from haiku_mqa.generation.dials import Counts, Dials
from haiku_mqa.ops.numerics import first_largest

__all__ = ["Counts", "Dials", "Sampling", "choose", "filtered"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    They act in this order: bias, penalties, temperature, top-k, top-p, min-p,
    typical-p. Greedy choice takes bias and penalties too; filters change nothing
    there, since the likeliest token is always in play.

    Attributes:
      temperature: Divides the logits; 0 is greedy, the likeliest token always. Else
        at least 1e-5: what is smaller is greedy but for rounding.
      top_k: How many of the likeliest tokens stay in play; ``None`` is all.
      top_p: The likeliest tokens whose probabilities first reach this sum stay in
        play, in (0, 1] (Holtzman et al. 2019); ``None`` is all.
      min_p: Tokens at least this many times as likely as the likeliest stay in play,
        in [0, 1] (Nguyen et al. 2024); ``None`` is all.
      typical_p: The tokens whose surprise is nearest to the mean and whose
        probabilities first reach this sum stay in play, in (0, 1] (Meister et al.
        2022); ``None`` is all.
      repetition_penalty: Divides positive logits of tokens that the prompt or the
        new text holds, and multiplies negative ones, > 0 (Keskar et al. 2019); 1 is
        off.
      presence_penalty: Is taken from the logit of each token that the new text
        holds; 0 is off.
      frequency_penalty: Is taken from a token's logit as often as the new text holds
        it; 0 is off.
      logit_bias: Token id to what is added to its logit; ``-inf`` forbids the token.

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
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # A mapping has no hash; two of equal hashes are still told apart by it.
    logit_bias: Mapping[int, float] | None = dataclasses.field(default=None, hash=False)

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
        for name in ("top_p", "typical_p"):
            share = getattr(self, name)
            if share is not None and not (is_number(share) and 0 < share <= 1):
                raise ValueError(f"{name} must be in (0, 1], got {share}")
        if self.min_p is not None and not (
            is_number(self.min_p) and 0 <= self.min_p <= 1
        ):
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        check_positive("repetition_penalty", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            if not is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)}")
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, and no rng needed."""
        return self.temperature == 0


def choose(
    logits: jax.Array,
    dials: Dials,
    rngs: jax.Array | None,
    counts: Counts | None = None,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token a row.

    Args:
      logits: float32 ``[B, V]``.
      dials: How to choose.
      rngs: PRNG keys ``[B]``, one a row; ``None`` where the choice is greedy.
      counts: What each row holds; needed where a penalty is on.
      allowed: bool ``[B, V]``, which tokens may be chosen; all if ``None``.

    Returns:
      The token, int32 ``[B]``; -1 where a row's logits hold NaN, or bias and
      ``allowed`` leave none in play, for which no token is right. And its
      log-probability, float32 ``[B]``, in the model's own distribution: that of
      ``logits`` as they are.

    Raises:
      ValueError: A penalty is on, and there are no counts.

    Example:
      >>> logits = jnp.array([[0.0, 2.0, 1.0]])
      >>> token, _ = choose(logits, Dials.of([Sampling(temperature=0.0)], 3), None)
      >>> token.tolist()
      [1]
    """
    weights = _penalized(logits, dials, counts, allowed)
    broken = jnp.isnan(logits).any(axis=-1)
    if dials.bias is not None or allowed is not None:
        broken |= (weights == -jnp.inf).all(axis=-1)
    if dials.temperature is not None and rngs is not None:
        noise = jax.vmap(lambda rng: jax.random.gumbel(rng, logits.shape[1:]))(rngs)
        weights = _filtered(weights, dials) + noise
    tokens = first_largest(weights)[:, None]
    logprobs = jnp.take_along_axis(logits, tokens, axis=-1)[:, 0]
    logprobs = logprobs - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(broken, -1, tokens[:, 0]).astype(jnp.int32), logprobs


def filtered(
    logits: jax.Array,
    dials: Dials,
    counts: Counts | None = None,
    allowed: jax.Array | None = None,
) -> jax.Array:
    """Returns the logits that tokens are drawn by.

    Args:
      logits: float32 ``[B, V]``.
      dials: How to choose; a greedy row keeps its likeliest token alone.
      counts: What each row holds; needed where a penalty is on.
      allowed: bool ``[B, V]``, which tokens may be chosen; all if ``None``.

    Returns:
      float32 ``[B, V]``, -inf where a token is out of play.

    Raises:
      ValueError: A penalty is on, and there are no counts.

    Example:
      >>> logits = jnp.array([[0.0, 2.0, 1.0]])
      >>> filtered(logits, Dials.of([Sampling(top_k=2)], 3)).tolist()
      [[-inf, 0.0, -1.0]]
    """
    return _filtered(_penalized(logits, dials, counts, allowed), dials)


def _penalized(
    logits: jax.Array, dials: Dials, counts: Counts | None, allowed: jax.Array | None
) -> jax.Array:
    if dials.bias is not None and dials.bias_ids is not None:
        logits = _filters.biased(logits, dials.bias_ids, dials.bias)
    if dials.needs_counts:
        if counts is None:
            raise ValueError("counts must be given where a penalty is on, got None")
        held = counts.generated > 0
        if dials.repetition_penalty is not None:
            seen = held | counts.prompt
            logits = _filters.less_repeated(logits, dials.repetition_penalty, seen)
        if dials.presence_penalty is not None:
            fine = dials.presence_penalty[:, None]
            logits = logits - jnp.where(held, fine, jnp.zeros_like(fine))
        if dials.frequency_penalty is not None:
            often = counts.generated.astype(logits.dtype)
            logits = logits - dials.frequency_penalty[:, None] * often
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def _filtered(logits: jax.Array, dials: Dials) -> jax.Array:
    greedy = jnp.zeros(1, logits.dtype)
    cold = greedy if dials.temperature is None else dials.temperature
    logits = _filters.tempered(logits, cold)
    if dials.top_k is not None or dials.top_p is not None:
        logits = _filters.top_ranked(logits, dials.top_k, dials.top_p)
    if dials.min_p is not None:
        logits = _filters.likely_enough(logits, dials.min_p)
    if dials.typical_p is not None:
        logits = _filters.typical(logits, dials.typical_p)
    return logits


def _checked_bias(logit_bias: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(logit_bias, Mapping):
        raise ValueError(
            "logit_bias must map token ids to what is added to their logits, "
            f"got {logit_bias!r}"
        )
    for token, value in logit_bias.items():
        whole_number("logit_bias", token, least=0)
        if not is_number(value) and value != -float("inf"):
            raise ValueError(
                f"logit_bias[{token}] must be a number, or -inf to forbid the token, "
                f"got {value!r}"
            )
    # A copy: what changes in the caller's own does not change this.
    return {int(token): float(value) for token, value in logit_bias.items()}
