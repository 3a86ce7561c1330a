"""Who depends on whom: causality, influence, positions, ids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import (
    INF,
    gap,
    has_relative_positions,
    is_ours,
    only,
    places,
    seeds,
)
from haiku_mqa.testing.subject import LENGTH, Subject


def _causality(subject: Subject, case: tuple[int, int, int]) -> float:
    seed, other, start = case
    tokens = subject.tokens(seed)
    changed = tokens.copy()
    changed[:, start:] = subject.others(other, tokens)[:, start:]
    return gap(subject.logits(tokens)[:, :start], subject.logits(changed)[:, :start])


def _influence(subject: Subject, case: tuple[int, int]) -> float:
    seed, place = case
    tokens = subject.tokens(seed)
    changed = tokens.copy()
    changed[:, place] = (tokens[:, place] + 1) % subject.vocab_size
    moved = np.abs(subject.logits(tokens) - subject.logits(changed)).max(axis=(0, 2))
    reach = LENGTH if subject.config is None else reach_of(subject)
    felt = moved[place : place + reach]
    return 0.0 if (felt > 0).all() else INF


def reach_of(subject: Subject) -> int:
    """How many tokens on, itself included, a token is felt through all layers."""
    windows = subject.model.config.windows
    return 1 + sum((LENGTH if w is None else w) - 1 for w in windows)


def _jacobian(subject: Subject, seed: int) -> float:
    """Zero for the future, and not zero for the past, through the embeddings.

    Every place has a token of its own, so that a row of the table is an input. Only
    logits of tokens that are not there are looked at: where the table is the output
    matrix too, those of the others would depend on it directly.
    """
    draw = np.random.default_rng(seed)
    length = min(LENGTH, subject.vocab_size // 2)
    ids = draw.permutation(subject.vocab_size).astype(np.int32)
    felt = np.asarray(_input_gradients(subject, ids[:length], ids[length:], draw))
    future = np.triu(felt, k=1)
    reach = reach_of(subject)
    past = [felt[t, s] for t in range(length) for s in range(max(0, t - reach + 1), t)]
    return INF if future.any() or not all(past) else 0.0


def _input_gradients(
    subject: Subject, tokens: np.ndarray, absent: np.ndarray, draw: np.random.Generator
) -> jax.Array:
    """Returns how much each place feels each, ``[T, T]``."""
    params, apply = subject.params, subject.decoder.apply
    embed = params["decoder_lm/embed"]
    weights = jnp.asarray(draw.standard_normal(absent.size))

    def read(vectors: jax.Array) -> jax.Array:
        table = embed["embeddings"].at[tokens].set(vectors)
        changed = {**params, "decoder_lm/embed": {**embed, "embeddings": table}}
        logits = apply(changed, None, jnp.asarray(tokens)[None]).logits
        return logits[0][:, absent] @ weights

    jacobian = jax.jit(jax.jacrev(read))(jnp.asarray(embed["embeddings"])[tokens])
    return jnp.abs(jacobian).sum(axis=-1)


def _shift(subject: Subject, case: tuple[int, int]) -> float:
    seed, offset = case
    tokens = subject.tokens(seed)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    return gap(
        subject.logits(tokens, positions=positions + np.int32(offset)),
        subject.logits(tokens, positions=positions),
    )


def _out_of_range(subject: Subject, case: tuple[int, int, bool]) -> float:
    seed, place, below = case
    tokens = subject.tokens(seed)
    tokens[0, place] = -1 if below else subject.vocab_size + seed % 1000
    try:
        logits = subject.logits(tokens)
    except Exception:  # refused: as good as seen
        return 0.0
    return 0.0 if np.isnan(logits[0, place]).all() else INF


DEPENDENCE_LAWS: tuple[Law, ...] = (
    Law(
        name="causality",
        statement="Changing later tokens leaves earlier logits as they were.",
        tolerance=0,
        cases=only(st.tuples(seeds, seeds, st.integers(1, LENGTH - 1))),
        error=_causality,
    ),
    Law(
        name="influence",
        statement="A token is felt at its own place and by all that may see it.",
        tolerance=0,
        cases=only(st.tuples(seeds, places)),
        error=_influence,
    ),
    Law(
        name="jacobian",
        statement="The Jacobian is zero for the future, and not zero for the past.",
        tolerance=0,
        cases=only(seeds),
        error=_jacobian,
        applies=is_ours,
        most=2,
    ),
    Law(
        name="shift",
        statement="Only relative positions matter, up to offsets of a thousand.",
        tolerance=5e-5,
        cases=only(st.tuples(seeds, st.integers(0, 1000))),
        error=_shift,
        applies=has_relative_positions,
    ),
    Law(
        name="no silent ids",
        statement="A token id out of range is refused, or gives NaN at its place.",
        tolerance=0,
        cases=only(st.tuples(seeds, places, st.booleans())),
        error=_out_of_range,
    ),
)
