"""Batches that grain makes ahead of time are those that are made when asked."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa.training import (
    GrainWindows,
    PackedDocuments,
    RandomWindows,
    open_tokens,
)
from haiku_mqa.training.grain_loader import batches_ahead
from haiku_mqa.training.token_files import _header
from tests.training.batches import SEEDS, SIZES, STEPS, TOKENS, assert_same

MEGABYTE = 2**20
THREADS = st.integers(0, 3)
ROWS = st.sampled_from([None, slice(0, 1), slice(2, 5), slice(1, None, 2)])


def _make(seed=0, seq_len=8, batch_size=6, tokens=TOKENS):
    return GrainWindows(tokens, seq_len, batch_size, seed)


def _expected(seed=0, seq_len=8, batch_size=6, tokens=TOKENS):
    return RandomWindows(tokens, seq_len, batch_size, seed)


def _take(windows, first, count=3, **options):
    batches = windows.iterate(first, **options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


# --- The same batches -----------------------------------------------------------------


@given(seed=SEEDS, step=STEPS, seq_len=SIZES, batch_size=SIZES)
def test_batch_of_a_step_is_that_of_random_windows(seed, step, seq_len, batch_size):
    ours, expected = (
        make(seed, seq_len, batch_size).batch(step) for make in (_make, _expected)
    )
    assert_same(ours, expected)
    assert [x.dtype for x in ours[:3]] == [x.dtype for x in expected[:3]]


@settings(max_examples=20)
@given(seed=SEEDS, first=STEPS, num_threads=THREADS, rows=ROWS)
def test_batches_from_a_step_on_are_those_of_random_windows(
    seed, first, num_threads, rows
):
    batches = _take(_make(seed), first, 4, num_threads=num_threads, rows=rows)
    assert len(batches) == 4
    for step, batch in enumerate(batches, start=first):
        assert_same(batch, _expected(seed).batch(step, rows))


@given(step=STEPS, rows=ROWS)
def test_element_of_the_dataset_is_the_batch_of_its_step(step, rows):
    assert_same(_make().dataset(rows)[step], _expected().batch(step, rows))


@settings(max_examples=10)
@given(seed=SEEDS, first=st.integers(0, 20), done=st.integers(1, 6))
def test_resuming_in_the_middle_is_never_having_stopped(seed, first, done):
    unbroken = _take(_make(seed), first, 8)
    begun = _take(_make(seed), first, done, num_threads=2)
    resumed = _take(_make(seed), first + done, 8 - done, num_threads=3)
    assert len(unbroken) == len(begun + resumed) == 8
    for one, other in zip(begun + resumed, unbroken, strict=True):
        assert_same(one, other)


@settings(max_examples=10)
@given(first=STEPS, cuts=st.lists(st.integers(1, 5), unique=True))
def test_rows_of_processes_are_together_the_whole_batch(first, cuts):
    edges = [0, *sorted(cuts), 6]
    parts = [
        _take(_make(), first, rows=slice(start, stop))
        for start, stop in itertools.pairwise(edges)
    ]
    for pieces, whole in zip(
        zip(*parts, strict=True), _take(_make(), first), strict=True
    ):
        for name in ("tokens", "labels", "mask"):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            np.testing.assert_array_equal(joined, getattr(whole, name))


@pytest.mark.parametrize(("first", "end"), [(0, 3), (4, 9), (5, 5)])
def test_any_source_is_read_ahead_from_a_step_to_an_end(first, end):
    documents = [TOKENS[:40], TOKENS[40:45], TOKENS[45:80]]
    source = PackedDocuments(documents, 8, 2, seed=1)
    batches = list(batches_ahead(source.batch, first, end))
    assert len(batches) == end - first
    for step, batch in enumerate(batches, start=first):
        assert_same(batch, source.batch(step))


def test_steps_up_to_the_last_that_grain_can_count_are_read():
    last = 2**63 - 2
    assert_same(_take(_make(), last, 1)[0], _expected().batch(last))
    assert_same(_make().batch(2**64 - 1), _expected().batch(2**64 - 1))


# --- Ahead of time --------------------------------------------------------------------


class Recorded(GrainWindows):
    """Tells which batches were made."""

    def batch(self, step, rows=None):
        made.append((step, threading.current_thread().name))
        return super().batch(step, rows)


made: list[tuple[int, str]] = []


def _wait(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_batches_are_made_before_they_are_asked_for_by_other_threads():
    made.clear()
    batches = Recorded(TOKENS, 8, 6, 0).iterate(5, num_threads=2, ahead=4)
    next(batches)
    _wait(lambda: len(made) == 5)  # the one that was taken, and four more
    batches.close()
    assert sorted(step for step, _ in made) == [5, 6, 7, 8, 9]
    assert threading.current_thread().name not in {name for _, name in made}


def test_without_threads_a_batch_is_made_when_it_is_asked_for():
    made.clear()
    batches = Recorded(TOKENS, 8, 6, 0).iterate(5, num_threads=0)
    next(batches)
    assert made == [(5, threading.current_thread().name)]


@pytest.mark.parametrize(
    "iterate",
    [
        lambda: _make().iterate(num_threads=3),
        lambda: batches_ahead(_expected().batch, 0, 100),
    ],
    ids=["windows", "any source"],
)
def test_threads_end_when_the_batches_are_closed(iterate):
    before = {*threading.enumerate()}
    batches = iterate()
    next(batches)
    own = {*threading.enumerate()} - before
    assert own
    batches.close()
    _wait(lambda: not any(thread.is_alive() for thread in own))


def test_tokens_of_a_memory_map_are_never_copied_whole(tmp_path):
    # The file takes no room on the disk, and more memory than is allowed if copied.
    path, count = tmp_path / "tokens.npy", 256 * MEGABYTE
    with open(path, "wb") as file:
        file.write(_header("<u2", count))
        file.truncate(file.tell() + 2 * count)
    tracemalloc.start()
    try:
        windows = GrainWindows(open_tokens(path), seq_len=64, batch_size=8, seed=0)
        batches = _take(windows, 10**6, 20, num_threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(batches) == 20
    assert peak < 4 * MEGABYTE


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"first_step": -1}, "first_step must be a whole number from 0"),
        ({"first_step": 2**63 - 1}, "first_step must be a whole number from 0"),
        ({"num_threads": -1}, "num_threads must be a whole number >= 0"),
        ({"num_threads": 1.5}, "num_threads must be a whole number >= 0"),
        ({"ahead": 0}, "ahead must be a whole number >= 1"),
        ({"rows": slice(6, 9)}, "rows must be a slice that takes some of 6"),
        ({"rows": 2}, "rows must be a slice"),
    ],
)
def test_argument_is_refused_before_a_batch_is_asked_for(options, told):
    with pytest.raises(ValueError, match=told):
        _make().iterate(**options)


def test_tokens_that_are_too_few_are_refused_as_ever():
    with pytest.raises(ValueError, match="tokens must be at least seq_len"):
        _make(tokens=np.arange(8))


def test_without_grain_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'haiku-mqa\[grain\]'"):
        _make()
