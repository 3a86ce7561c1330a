"""What each penalty and each filter does to logits, row by row.

A number of each row is ``[B]``, or ``[1]`` where one serves all rows. Neutral numbers
change no logit, not even by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def biased(logits: jax.Array, ids: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns logits with ``bias`` added at ``ids``, both ``[B, E]``."""
    rows = jnp.arange(ids.shape[0])[:, None]
    dense = jnp.zeros((ids.shape[0], logits.shape[-1]), logits.dtype)
    return logits + dense.at[rows, ids].add(bias)


def less_repeated(logits: jax.Array, penalty: jax.Array, seen: jax.Array) -> jax.Array:
    """Returns logits of which those ``seen``, bool ``[B, V]``, are less likely."""
    penalty = penalty[:, None]
    lowered = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, lowered, logits)


def tempered(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Returns logits over temperature; the likeliest alone in play where it is 0."""
    likeliest = jnp.arange(logits.shape[-1]) == logits.argmax(axis=-1)[:, None]
    greedy = (temperature == 0)[:, None]
    # The largest is zero first: a small temperature then overflows nothing that
    # could still be chosen.
    scaled = logits - logits.max(axis=-1, keepdims=True)
    scaled = scaled / jnp.where(greedy, jnp.ones_like(scaled), temperature[:, None])
    return jnp.where(greedy & ~likeliest, -jnp.inf, scaled)


def top_ranked(
    logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None
) -> jax.Array:
    """Keeps the k likeliest tokens, and of these the fewest that reach p."""
    vocab_size = logits.shape[-1]
    on = [] if top_k is None else [top_k < vocab_size]
    on += [] if top_p is None else [top_p < 1]

    def keep(logits: jax.Array) -> jax.Array:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        if top_k is not None:
            last = jnp.minimum(top_k, vocab_size)[:, None] - 1
            least = jnp.take_along_axis(ranked, last, axis=-1)
            logits = jnp.where(logits < least, -jnp.inf, logits)
            ranked = jnp.where(ranked < least, -jnp.inf, ranked)
        if top_p is not None:
            probabilities = jax.nn.softmax(ranked, axis=-1)
            before = probabilities.cumsum(axis=-1) - probabilities
            # The first is always in play, so that a small top_p is greedy, not empty;
            # and rounded sums may come to one too soon.
            kept = (before < top_p[:, None]) | (top_p >= 1)[:, None]
            least = jnp.where(kept, ranked, jnp.inf).min(axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits

    return _where_any(on, keep, logits)


def likely_enough(logits: jax.Array, min_p: jax.Array) -> jax.Array:
    """Keeps tokens at least ``min_p`` times as likely as the likeliest."""
    least = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)[:, None]
    return jnp.where(logits < least, -jnp.inf, logits)


def typical(logits: jax.Array, typical_p: jax.Array) -> jax.Array:
    """Keeps the tokens whose surprise is nearest the mean, the fewest that reach p."""

    def keep(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        p = jnp.exp(log_p)
        entropy = -jnp.where(p > 0, p * log_p, 0.0).sum(axis=-1, keepdims=True)
        distance = jnp.abs(log_p + entropy)
        nearest, ranked = jax.lax.sort((distance, p), dimension=-1, num_keys=1)
        short = (ranked.cumsum(axis=-1) < typical_p[:, None]).sum(axis=-1)
        last = jnp.minimum(short, logits.shape[-1] - 1)[:, None]
        furthest = jnp.take_along_axis(nearest, last, axis=-1)
        kept = (distance <= furthest) | (typical_p >= 1)[:, None]
        return jnp.where(kept, logits, -jnp.inf)

    return _where_any([typical_p < 1], keep, logits)


def _where_any(
    on: list[jax.Array],
    change: Callable[[jax.Array], jax.Array],
    logits: jax.Array,
) -> jax.Array:
    if not on:
        return logits
    # A sort of a vocabulary is dear: where no row asks for it, none is made.
    wanted = jnp.stack([rows.any() for rows in on]).any()
    return jax.lax.cond(wanted, change, lambda logits: logits, logits)
