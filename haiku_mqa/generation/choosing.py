"""How the next token is chosen from its logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from haiku_mqa.generation import _filters
from haiku_mqa.generation.dials import Counts, Dials
from haiku_mqa.ops.numerics import first_largest


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
      >>> from haiku_mqa.generation.sampling import Sampling
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
      >>> from haiku_mqa.generation.sampling import Sampling
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
