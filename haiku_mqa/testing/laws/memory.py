"""Memory: a cache changes the cost of reading, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from haiku_mqa.generation import generate, read_prefix
from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import (
    CLOSE,
    COARSE,
    INF,
    SIZES,
    can_roll_back,
    cuts,
    fill,
    gap,
    has_our_cache,
    is_ours,
    only,
    seeds,
)
from haiku_mqa.testing.subject import BATCH, LENGTH, Subject

CHUNK = 4  # the width of ragged chunks, in tokens

_rows_chosen = st.lists(st.integers(0, BATCH - 1), min_size=BATCH, max_size=BATCH)
_kept = st.lists(st.integers(1, 5), min_size=BATCH, max_size=BATCH)


def _chunks(subject: Subject, case: tuple[int, list[int]]) -> float:
    seed, sizes = case
    tokens = subject.tokens(seed)
    got = _read(subject, tokens, sizes, subject.empty_cache())
    return gap(got, subject.logits(tokens))


def _read(
    subject: Subject, tokens: np.ndarray, sizes: Sequence[int], cache: Any
) -> np.ndarray:
    """Returns the logits of tokens that are read in chunks."""
    start, parts = 0, []
    for size in sizes:
        out = subject.step(tokens[:, start : start + size], cache)
        cache, start = out.cache, start + size
        parts.append(np.asarray(out.logits))
    return np.concatenate(parts, axis=1)


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
    if cache.endless:  # of rings alone: there is room for any number
        sizes = fill([SIZES[first % len(SIZES)]] * LENGTH)
        return gap(_read(subject, tokens, sizes, cache), subject.logits(tokens))
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
    tie = COARSE if subject.is_coarse else CLOSE
    for row, start in enumerate(lists):
        text = [*start, *got[row]]
        padded = np.zeros((BATCH, LENGTH), np.int32)
        padded[0, : len(text)] = text
        logits = subject.logits(padded)[0]
        for n, token in enumerate(got[row]):
            scores = logits[len(start) + n - 1]
            if scores.max() - scores[token] > tie:  # a tie may fall either way
                return INF
    return 0.0


def _rows(subject: Subject, case: tuple[int, int, list[int]]) -> float:
    seed, other, chosen = case
    tokens, more = subject.tokens(seed)[:, :5], subject.tokens(other)[:, :2]
    cache = subject.step(tokens, subject.empty_cache()).cache
    turned = subject.step(more[chosen], cache.rows(chosen))
    return gap(turned.logits, np.asarray(subject.step(more, cache).logits)[chosen])


def _roll_back(subject: Subject, case: tuple[int, int, list[int]]) -> float:
    """Rows forget tokens, and read others in their place."""
    seed, other, kept = case
    tokens, more = subject.tokens(seed), subject.tokens(other)
    cache = subject.step(tokens[:, :5], subject.empty_cache()).cache
    short = np.arange(5)[None] < np.asarray(kept)[:, None]
    wanted = subject.step(tokens[:, :5], subject.empty_cache(), mask=short).cache
    longer = subject.step(more[:, :5], cache).cache
    got, truth = (
        subject.step(more[:, 5:7], past).logits
        for past in (longer.rolled_back(kept), wanted)
    )
    return gap(got, truth)


def _prefix(subject: Subject, case: tuple[int, int]) -> float:
    """A prefix, then more of the text, then a batch that goes on from it."""
    seed, first = case
    tokens = subject.tokens(seed, rows=1)
    wanted = subject.logits(np.repeat(tokens, BATCH, axis=0))
    prefix = read_prefix(subject.model, subject.params, tokens[0, :first].tolist())
    longer = prefix.extended(
        subject.model, subject.params, tokens[0, first:10].tolist()
    )
    rest = np.repeat(tokens[:, 10:], BATCH, axis=0)
    after = subject.step(rest, longer.rows(BATCH, max_length=16)).logits
    return max(
        gap(prefix.logits, wanted[0, first - 1]),
        gap(longer.logits, wanted[0, 9]),
        gap(after, wanted[:, 10:]),
    )


MEMORY_LAWS: tuple[Law, ...] = (
    Law(
        name="chunks",
        statement="Decoding with a cache equals the full forward, however T is cut.",
        tolerance=CLOSE,
        coarse=COARSE,
        cases=only(st.tuples(seeds, cuts)),
        error=_chunks,
    ),
    Law(
        name="ragged chunks",
        statement="So it does where rows advance unevenly, with padding anywhere.",
        tolerance=CLOSE,
        coarse=COARSE,
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
    Law(
        name="rows",
        statement="Rows of a cache can be turned and repeated, and go on as they were.",
        tolerance=0,
        cases=only(st.tuples(seeds, seeds, _rows_chosen)),
        error=_rows,
        applies=has_our_cache,
        most=10,
    ),
    Law(
        name="roll back",
        statement="Rolled back, a cache is as if the rest had not been read.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, seeds, _kept)),
        error=_roll_back,
        applies=can_roll_back,
        most=10,
    ),
    Law(
        name="prefix",
        statement="Going on from a prefix is going on from the whole text.",
        tolerance=CLOSE,
        coarse=COARSE,
        cases=only(st.tuples(seeds, st.integers(1, 9))),
        error=_prefix,
        applies=is_ours,
        most=3,
    ),
)
