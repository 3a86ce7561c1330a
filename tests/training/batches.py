"""Data that tests of batches share: each token tells where it comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from haiku_mqa.training import PackedDocuments, RandomWindows

TOKENS = np.arange(1000, 1500)  # each token tells its place
STEPS = st.integers(0, 2**40)
SEEDS = st.integers(0, 2**64 - 1)
SIZES = st.integers(1, 12)
lengths = st.lists(st.integers(2, 30), min_size=1, max_size=20)


def make_documents(sizes):
    """Returns documents in which each token tells its document and its place there."""
    return [1000 * i + np.arange(size) for i, size in enumerate(sizes)]


def make_windows(seed=0, seq_len=8, batch_size=6, tokens=TOKENS):
    return RandomWindows(tokens, seq_len, batch_size, seed)


def make_packed(seed=0, seq_len=8, batch_size=6, sizes=(2, 30, 9, 5, 3, 8, 17)):
    return PackedDocuments(make_documents(sizes), seq_len, batch_size, seed)


both = pytest.mark.parametrize(
    "make", [make_windows, make_packed], ids=["windows", "packed"]
)


def assert_same(one, other):
    for some, others in zip(one, other, strict=True):
        np.testing.assert_array_equal(some, others)
