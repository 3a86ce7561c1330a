"""Packed documents: none sees another, none is lost, and little room is wasted."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, build
from haiku_mqa.training import Batch, PackedDocuments
from tests.training.batches import (
    SEEDS,
    SIZES,
    STEPS,
    lengths,
    make_documents,
    make_packed,
)

SAME = 1e-5


@given(seed=SEEDS, step=STEPS, sizes=lengths, seq_len=SIZES, batch_size=SIZES)
def test_packed_segments_are_pieces_of_one_document(
    seed, step, sizes, seq_len, batch_size
):
    if sum(sizes) < seq_len + 1:
        sizes = [*sizes, seq_len + 1]
    batch = make_packed(seed, seq_len, batch_size, sizes).batch(step)
    for row in range(batch_size):
        segments = batch.segment_ids[row]
        real = segments > 0
        np.testing.assert_array_equal(batch.mask[row], real)
        assert (np.diff(segments[real]) >= 0).all()
        assert sorted(set(segments[real])) == list(range(1, segments.max() + 1))
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            tokens, labels = batch.tokens[row, here], batch.labels[row, here]
            assert len({*(tokens // 1000), *(labels // 1000)}) == 1
            np.testing.assert_array_equal(labels, tokens + 1)
            np.testing.assert_array_equal(np.diff(tokens), 1)
            np.testing.assert_array_equal(batch.positions[row, here], range(here.sum()))
        for name in ("tokens", "labels", "positions", "segment_ids"):
            assert not getattr(batch, name)[row, ~real].any()


@given(seed=SEEDS, epoch=st.integers(0, 2**30), sizes=lengths, seq_len=SIZES)
def test_every_label_of_every_document_is_read_once_an_epoch(
    seed, epoch, sizes, seq_len
):
    sizes = [*sizes, seq_len + 1]
    data = make_packed(seed, seq_len, batch_size=1, sizes=sizes)
    begin = epoch * data.rows_per_epoch
    batches = [data.batch(begin + row) for row in range(data.rows_per_epoch)]
    read = Counter(label for b in batches for label in b.labels[b.mask].tolist())
    labels = [label for document in make_documents(sizes) for label in document[1:]]
    assert read == Counter(labels)
    assert data.num_labels == len(labels)


def test_batches_go_on_from_one_epoch_into_the_next():
    data, rows = make_packed(batch_size=4), make_packed(batch_size=1)
    assert data.rows_per_epoch % 4
    steps = range(2 * data.rows_per_epoch)
    one_by_one = [rows.batch(row).tokens for row in range(4 * len(steps))]
    by_four = [data.batch(step).tokens for step in steps]
    np.testing.assert_array_equal(np.concatenate(one_by_one), np.concatenate(by_four))


def test_epochs_have_their_own_orders():
    sizes = [9] * 30  # each fills a row
    data = make_packed(seq_len=8, batch_size=30, sizes=sizes)
    orders = [data.batch(epoch).tokens[:, 0].tolist() for epoch in range(3)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(map(tuple, orders))) == 3


@given(sizes=lengths, seq_len=SIZES)
def test_no_two_rows_of_an_epoch_would_fit_into_one(sizes, seq_len):
    data = make_packed(seq_len=seq_len, batch_size=1, sizes=[*sizes, seq_len + 1])
    filled = [data.batch(row).mask.sum() for row in range(data.rows_per_epoch)]
    assert len(filled) == 1 or sum(sorted(filled)[:2]) > seq_len


def test_document_is_packed_where_least_room_is_left():
    sizes = [places + 1 for places in (2, 2, 3, 6, 7)]
    data = make_packed(seq_len=10, batch_size=2, sizes=sizes)
    assert data.rows_per_epoch == 2  # 7 + 3 and 6 + 2 + 2; most room would take three
    assert data.batch(0).mask.all()


def test_packed_documents_have_the_logits_that_each_has_alone():
    config = DecoderConfig(
        vocab_size=50, num_layers=1, num_heads=2, d_model=16, d_ff=32
    )
    model = build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    documents = [[7, 8, 9, 7, 5], [1, 2, 3], [4, 4]]
    batch = PackedDocuments(documents, seq_len=8, batch_size=1, seed=0).batch(0)
    read = jax.jit(
        lambda batch: (
            model.apply(
                params,
                None,
                batch.tokens,
                positions=batch.positions,
                segment_ids=batch.segment_ids,
            ).logits
        )
    )
    packed = read(batch)
    for segment, document in enumerate(documents, start=1):
        length = len(document) - 1
        # What follows is padding: it comes after, so it is not seen.
        row = np.zeros((1, 8), np.int32)
        row[0, :length] = document[:-1]
        alone = read(Batch(row, row, row > 0))
        here = batch.segment_ids[0] == segment
        np.testing.assert_allclose(
            packed[0][here], alone[0, :length], atol=SAME, rtol=0
        )


@pytest.mark.parametrize("length", [0, 1])
def test_document_with_nothing_to_foretell_is_refused_by_its_number(length):
    documents = [[1, 2, 3], list(range(length))]
    with pytest.raises(ValueError, match=rf"documents\[1\] .* 2 tokens.* got {length}"):
        PackedDocuments(documents, 2, 1, 0)


def test_packing_of_no_documents_is_refused():
    with pytest.raises(ValueError, match="documents must be at least one, got none"):
        PackedDocuments([], 2, 1, 0)
