"""Rows, padding and packed segments keep to themselves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import (
    CLOSE,
    COARSE,
    cuts,
    gap,
    only,
    places,
    seeds,
)
from haiku_mqa.testing.subject import BATCH, LENGTH, Subject

_borders = st.sets(st.integers(1, LENGTH - 1), max_size=4).map(sorted)


def _padding(subject: Subject, case: tuple[int, int, list[int], list[int]]) -> float:
    seed, filler, lefts, lengths = case
    tokens = subject.tokens(seed)
    padded = subject.tokens(filler)
    real = np.zeros((BATCH, LENGTH), bool)
    for row, (left, length) in enumerate(zip(lefts, lengths, strict=True)):
        stop = min(LENGTH, left + length)
        real[row, left:stop] = True
        padded[row, left:stop] = tokens[row, : stop - left]
    wanted, got = subject.logits(tokens), subject.logits(padded, mask=real)
    gaps = [
        gap(got[row, real[row]], wanted[row, : real[row].sum()]) for row in range(BATCH)
    ]
    return max(gaps)


def _alone(subject: Subject, case: tuple[int, int]) -> float:
    seed, row = case
    tokens = subject.tokens(seed)
    return gap(subject.logits(tokens[row : row + 1])[0], subject.logits(tokens)[row])


def _row_order(subject: Subject, case: tuple[int, list[int]]) -> float:
    seed, order = case
    tokens = subject.tokens(seed)
    return gap(subject.logits(tokens[order]), subject.logits(tokens)[order])


def _pack(subject: Subject, seed: int, borders: list[int]) -> tuple[Any, Any, list]:
    """Returns one packed row, its segment ids, and where each segment stands."""
    tokens = subject.tokens(seed, rows=1)
    edges = [0, *borders, LENGTH]
    spans = list(itertools.pairwise(edges))
    ids = np.concatenate([np.full(b - a, 7 - i) for i, (a, b) in enumerate(spans)])
    return tokens, ids[None].astype(np.int32), spans


def _packing(subject: Subject, case: tuple[int, list[int]]) -> float:
    tokens, segments, spans = _pack(subject, *case)
    packed = subject.logits(tokens, segment_ids=segments)[0]
    worst = 0.0
    for start, stop in spans:
        row = np.zeros((BATCH, LENGTH), np.int32)
        row[0, : stop - start] = tokens[0, start:stop]
        alone = subject.logits(row)[0, : stop - start]
        worst = max(worst, gap(packed[start:stop], alone))
    return worst


def _packed_chunks(subject: Subject, case: tuple[int, list[int], list[int]]) -> float:
    seed, borders, sizes = case
    tokens, segments, _ = _pack(subject, seed, borders)
    wanted = subject.logits(tokens, segment_ids=segments)
    cache, start, parts = subject.empty_cache(rows=1), 0, []
    for size in sizes:
        span = slice(start, start + size)
        out = subject.step(tokens[:, span], cache, segment_ids=segments[:, span])
        cache, start = out.cache, start + size
        parts.append(np.asarray(out.logits))
    return gap(np.concatenate(parts, axis=1), wanted)


def _segregation(subject: Subject, case: tuple[int, list[int], int]) -> float:
    seed, borders, other = case
    tokens, segments, spans = _pack(subject, seed, borders)
    start, stop = spans[other % len(spans)]
    changed = subject.others(other, tokens)
    changed[:, start:stop] = tokens[:, start:stop]
    before, after = (
        subject.logits(t, segment_ids=segments)[:, start:stop]
        for t in (tokens, changed)
    )
    return gap(before, after)


BATCH_LAWS: tuple[Law, ...] = (
    Law(
        name="padding",
        statement="Padding on either side, and what it holds, does not matter.",
        tolerance=CLOSE,
        cases=only(
            st.tuples(
                seeds,
                seeds,
                st.lists(places, min_size=BATCH, max_size=BATCH),
                st.lists(st.integers(1, LENGTH), min_size=BATCH, max_size=BATCH),
            )
        ),
        error=_padding,
    ),
    Law(
        name="row alone",
        statement="A row alone gives what it gives in a batch.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, st.integers(0, BATCH - 1))),
        error=_alone,
    ),
    Law(
        name="row order",
        statement="Permuting rows permutes results.",
        tolerance=0,
        cases=only(st.tuples(seeds, st.permutations(range(BATCH)))),
        error=_row_order,
    ),
    Law(
        name="packing",
        statement="Packed segments equal separate sequences.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, _borders)),
        error=_packing,
    ),
    Law(
        name="packed chunks",
        statement="Packed segments may be read in chunks, too.",
        tolerance=CLOSE,
        coarse=COARSE,
        cases=only(st.tuples(seeds, _borders, cuts)),
        error=_packed_chunks,
    ),
    Law(
        name="segregation",
        statement="Changing one segment leaves the others as they were.",
        tolerance=0,
        cases=only(st.tuples(seeds, _borders, seeds)),
        error=_segregation,
    ),
)
