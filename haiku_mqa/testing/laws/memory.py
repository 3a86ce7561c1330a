"""Memory: a cache changes the cost of reading, and nothing else."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import strategies as st

from haiku_mqa.generation import generate
from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import (
    CLOSE,
    INF,
    cuts,
    gap,
    has_our_cache,
    is_ours,
    only,
    seeds,
)
from haiku_mqa.testing.subject import BATCH, LENGTH, Subject

CHUNK = 4  # the width of ragged chunks, in tokens


def _chunks(subject: Subject, case: tuple[int, list[int]]) -> float:
    seed, sizes = case
    tokens = subject.tokens(seed)
    cache, start, parts = subject.empty_cache(), 0, []
    for size in sizes:
        out = subject.step(tokens[:, start : start + size], cache)
        cache, start = out.cache, start + size
        parts.append(np.asarray(out.logits))
    return gap(np.concatenate(parts, axis=1), subject.logits(tokens))


def _ragged_chunks(subject: Subject, case: tuple[int, int]) -> float:
    """Each row takes what it likes of each chunk, with padding anywhere."""
    seed, pattern = case
    tokens, wanted = subject.tokens(seed), None
    wanted = subject.logits(tokens)
    draw = np.random.default_rng(pattern)
    cache, read, worst = subject.empty_cache(), np.zeros(BATCH, int), 0.0
    for _ in range(8):
        real = draw.random((BATCH, CHUNK)) < draw.random()
        real &= (real.cumsum(axis=1) + read[:, None]) <= LENGTH
        chunk = subject.tokens(pattern, length=CHUNK)  # what padding holds
        for row in range(BATCH):
            chunk[row, real[row]] = tokens[row, read[row] :][: real[row].sum()]
        out = subject.step(chunk, cache, mask=real)
        logits, cache = np.asarray(out.logits), out.cache
        for row in range(BATCH):
            count = int(real[row].sum())
            truth = wanted[row, read[row] : read[row] + count]
            worst = max(worst, gap(logits[row, real[row]], truth))
            read[row] += count
    return worst


def _overflow(subject: Subject, case: tuple[int, int]) -> float:
    """A cache too small: what fits is right, the rest is dropped and flagged."""
    seed, capacity = case[0], 8
    first = case[1]
    tokens = subject.tokens(seed)
    real = np.zeros((BATCH, LENGTH), bool)
    for row, count in enumerate((first, capacity, LENGTH)):
        real[row, :count] = True
    cache = subject.empty_cache(capacity=capacity)
    full = subject.step(tokens, cache, mask=real)
    fits = real.copy()
    fits[:, capacity:] = False
    whole = subject.step(tokens, cache, mask=fits)
    flagged = np.asarray(full.cache.overflowed).tolist() == [False, False, True]
    same = all(
        bool((a == b).all())
        for a, b in zip(
            jax.tree.leaves(full.cache.layers),
            jax.tree.leaves(whole.cache.layers),
            strict=True,
        )
    )
    kept = [np.asarray(out.logits)[fits] for out in (full, whole)]
    return gap(*kept) if flagged and same else INF


def _greedy(subject: Subject, seed: int) -> float:
    """Generation from a cache equals choosing from a full forward each time."""
    prompt, new = 5, 4
    tokens = subject.tokens(seed)
    lists = [row[: prompt - i].tolist() for i, row in enumerate(tokens)]
    got = generate(subject.model, subject.params, lists, max_new_tokens=new).tokens
    for row, start in enumerate(lists):
        text = [*start, *got[row]]
        padded = np.zeros((BATCH, LENGTH), np.int32)
        padded[0, : len(text)] = text
        logits = subject.logits(padded)[0]
        for n, token in enumerate(got[row]):
            scores = logits[len(start) + n - 1]
            if scores.max() - scores[token] > CLOSE:  # a tie may fall either way
                return INF
    return 0.0


MEMORY_LAWS: tuple[Law, ...] = (
    Law(
        name="chunks",
        statement="Decoding with a cache equals the full forward, however T is cut.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, cuts)),
        error=_chunks,
    ),
    Law(
        name="ragged chunks",
        statement="So it does where rows advance unevenly, with padding anywhere.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, seeds)),
        error=_ragged_chunks,
    ),
    Law(
        name="overflow",
        statement="What does not fit a cache is dropped and flagged; history stays.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, st.integers(1, 8))),
        error=_overflow,
        applies=has_our_cache,
    ),
    Law(
        name="greedy",
        statement="Greedy generation chooses what a full forward would.",
        tolerance=0,
        cases=only(seeds),
        error=_greedy,
        applies=is_ours,
        most=5,
    ),
)
