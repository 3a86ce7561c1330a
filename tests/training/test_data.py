"""Batches: each is known by its seed and step alone, and no label is a stranger's."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.text import BytePairTokenizer, ByteTokenizer
from haiku_mqa.training import (
    Corpus,
    PackedDocuments,
    RandomWindows,
    encode_corpus,
    encode_documents,
    validation_batches,
)
from tests.training.batches import (
    SEEDS,
    SIZES,
    STEPS,
    TOKENS,
    assert_same,
    both,
    make_packed,
    make_windows,
)

GOLDEN_STARTS = [[1086, 1189, 1002], [1086, 1420, 1266], [1212, 1469, 1337]]
GOLDEN_FIRSTS = [[6008, 6000, 1024, 1016], [3000, 1016, 1008, 2000]]


# --- A pure function of seed and step -------------------------------------------------


@both
@given(seed=SEEDS, step=STEPS, before=st.lists(STEPS, max_size=3))
def test_batch_does_not_depend_on_what_was_asked_before(make, seed, step, before):
    data = make(seed)
    for other in before:
        data.batch(other)
    assert_same(data.batch(step), make(seed).batch(step))
    assert_same(data.batch(step), data.batch(step))


CUTS = st.lists(st.integers(1, 5), unique=True)  # of six rows


def assert_whole(batch, cuts):
    """Asserts that the parts of a batch that processes make are together all of it."""
    edges = [0, *sorted(cuts), 6]
    parts = [batch(slice(*part)) for part in itertools.pairwise(edges)]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    assert_same(jax.tree.leaves(joined), jax.tree.leaves(batch(None)))


@both
@given(step=STEPS, cuts=CUTS)
def test_rows_of_processes_are_together_the_whole_batch(make, step, cuts):
    data = make()
    assert_whole(lambda rows: data.batch(step, rows=rows), cuts)


@given(length=st.integers(1, 100), seq_len=SIZES, cuts=CUTS)
def test_rows_of_processes_are_together_the_whole_batch_to_validate_on(
    length, seq_len, cuts
):
    tokens = TOKENS[: seq_len + length]

    def joined(rows):
        batches = validation_batches(tokens, seq_len, 6, rows)
        return jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *batches)

    assert_whole(joined, cuts)


@both
def test_rows_can_be_every_second_one(make):
    whole, some = make().batch(3), make().batch(3, rows=slice(1, None, 2))
    np.testing.assert_array_equal(some.tokens, whole.tokens[1::2])


@both
def test_batches_differ_by_step_and_by_seed(make):
    batches = [make(seed).batch(step) for seed in (0, 1) for step in (0, 1)]
    assert len({batch.tokens.tobytes() for batch in batches}) == 4


def test_batches_are_those_of_every_other_machine():
    # Written down: were they to change, no run could go on where it stopped.
    starts = [make_windows(1337).batch(step).tokens[:3, 0] for step in (0, 1, 2**40)]
    assert np.array(starts).tolist() == GOLDEN_STARTS
    firsts = [
        make_packed(1337, batch_size=4).batch(step).tokens[:, 0] for step in (0, 9)
    ]
    assert np.array(firsts).tolist() == GOLDEN_FIRSTS


def test_batch_is_the_same_in_another_process():
    program = (
        "from haiku_mqa.training import RandomWindows; "
        "print(RandomWindows(range(1000, 1500), 8, 6, 0).batch(7).tokens.tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == str(make_windows().batch(7).tokens.tolist())


@both
def test_batch_is_a_pytree_of_its_shapes_and_dtypes(make):
    batch = make().batch(0)
    for leaf in jax.tree.leaves(batch):
        assert leaf.shape == (6, 8)
        assert leaf.dtype == (bool if leaf is batch.mask else np.int32)


# --- Sequences cut at random ----------------------------------------------------------


@given(seed=SEEDS, step=STEPS, seq_len=SIZES, batch_size=SIZES)
def test_window_is_a_piece_of_the_text_and_labels_are_the_next_tokens(
    seed, step, seq_len, batch_size
):
    batch = make_windows(seed, seq_len, batch_size).batch(step)
    assert batch.tokens.shape == (batch_size, seq_len)
    np.testing.assert_array_equal(batch.labels, batch.tokens + 1)
    np.testing.assert_array_equal(np.diff(batch.tokens, axis=1), 1)
    assert TOKENS[0] <= batch.tokens.min() <= batch.labels.max() <= TOKENS[-1]
    assert batch.mask.all()


def test_windows_are_cut_everywhere_alike():
    windows = make_windows(seq_len=8, batch_size=1000, tokens=np.arange(18))
    counts = Counter(windows.batch(0).tokens[:, 0].tolist())
    assert sorted(counts) == list(range(10))  # the last one's label is the last token
    assert max(counts.values()) - min(counts.values()) < 60  # six standard deviations


def test_windows_of_the_shortest_text_are_all_of_it():
    batch = make_windows(seq_len=4, tokens=[5, 6, 7, 8, 9]).batch(0)
    assert (batch.tokens == [5, 6, 7, 8]).all()
    assert (batch.labels == [6, 7, 8, 9]).all()


def test_windows_read_a_memory_map_as_they_read_memory(tmp_path):
    TOKENS.astype(np.uint16).tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", np.uint16, "r")
    assert_same(make_windows(tokens=mapped).batch(5), make_windows().batch(5))


def test_batch_can_be_written_to_and_the_text_stays():
    tokens = TOKENS.astype(np.int32)
    batch = make_windows(tokens=tokens).batch(0)
    batch.tokens[:] = batch.labels[:] = 0
    np.testing.assert_array_equal(tokens, TOKENS)


# --- Validation -----------------------------------------------------------------------


@given(length=st.integers(1, 100), seq_len=SIZES, batch_size=SIZES)
def test_validation_counts_every_label_once_in_batches_of_one_shape(
    length, seq_len, batch_size
):
    tokens = np.arange(seq_len + length)
    batches = list(validation_batches(tokens, seq_len, batch_size))
    counted = np.concatenate([batch.labels[batch.mask] for batch in batches])
    np.testing.assert_array_equal(counted, tokens[1:])
    for batch in batches:
        assert batch.tokens.shape == (batch_size, seq_len)
        np.testing.assert_array_equal(
            batch.labels[batch.mask] - 1, batch.tokens[batch.mask]
        )
        assert not batch.labels[~batch.mask].any()
    assert all(batch.mask.all() for batch in batches[:-1])
    assert batches[-1].mask.any()


def test_validation_refuses_at_once_and_not_at_the_first_batch():
    with pytest.raises(ValueError, match="batch_size must be"):
        validation_batches(TOKENS, 8, 0)


# --- From text ------------------------------------------------------------------------


def test_documents_of_a_corpus_end_with_the_token_for_it():
    tokenizer = BytePairTokenizer([])
    tokens = encode_documents(Corpus(("ab", "c")), tokenizer)
    assert [document.tolist() for document in tokens] == [[97, 98, 256], [99, 256]]
    assert {document.dtype for document in tokens} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [(BytePairTokenizer([]), [97, 98, 256, 99]), (ByteTokenizer(), [97, 98, 99])],
    ids=["byte pairs", "bytes"],
)
def test_row_of_a_corpus_has_the_token_for_an_end_between_documents(
    tokenizer, expected
):
    assert encode_corpus(Corpus(("ab", "c")), tokenizer).tolist() == expected


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda t: RandomWindows(t, 64, 1, 0), "tokens must be at least"),
        (lambda t: validation_batches(t, 64, 1), "tokens must be at least"),
        (lambda t: PackedDocuments([t], 64, 1, 0), "documents must have at least"),
    ],
    ids=["windows", "validation", "packed"],
)
@pytest.mark.parametrize("length", [2, 64])
def test_text_shorter_than_a_sequence_is_refused_with_both_lengths(make, told, length):
    with pytest.raises(ValueError, match=rf"{told} seq_len \+ 1 = 65.* got {length}"):
        make(np.arange(length))
    make(np.arange(65))


@both
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None])
@pytest.mark.parametrize("name", ["seq_len", "batch_size"])
def test_size_that_is_no_whole_number_from_one_is_refused(make, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got"):
        make(**{name: value})


@both
@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None, True])
def test_seed_out_of_range_is_refused(make, seed):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to"):
        make(seed)


@both
@pytest.mark.parametrize("step", [-1, 2**64, 1.0, None, False])
def test_step_out_of_range_is_refused(make, step):
    with pytest.raises(ValueError, match="step must be a whole number from 0 to"):
        make().batch(step)


@both
@pytest.mark.parametrize("rows", [slice(6, 9), slice(3, 3), 2, [0, 1], (0, 2)])
def test_rows_that_are_none_of_the_batch_are_refused(make, rows):
    with pytest.raises(ValueError, match="rows must be a slice that takes some of 6"):
        make().batch(0, rows=rows)
    with pytest.raises(ValueError, match="rows must be a slice that takes some of 6"):
        validation_batches(TOKENS, 8, 6, rows)


@both
def test_step_can_be_a_number_of_numpy_or_jax(make):
    assert_same(make().batch(np.int64(3)), make().batch(3))
    assert_same(make().batch(jax.numpy.int32(3)), make().batch(3))


@pytest.mark.parametrize(
    "tokens",
    [[0.5] * 20, np.zeros((4, 9), int), 3, ["a"] * 20, np.ones(20, bool)],
    ids=["float", "two axes", "one number", "text", "bool"],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda tokens: RandomWindows(tokens, 8, 1, 0), "tokens"),
        (lambda tokens: validation_batches(tokens, 8, 1), "tokens"),
        (lambda tokens: PackedDocuments([TOKENS, tokens], 8, 1, 0), r"documents\[1\]"),
    ],
    ids=["windows", "validation", "packed"],
)
def test_tokens_that_are_no_row_of_whole_numbers_are_refused(make, name, tokens):
    with pytest.raises(ValueError, match=f"{name} must be whole numbers of one axis"):
        make(tokens)
