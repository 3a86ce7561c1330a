"""Batches: the one of step n is a pure function of a seed and n.

There is no state to save. A run that stopped goes on by asking for the next step's
batch, and each process of many asks for its own rows of the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.text.tokenizer import Tokenizer
from haiku_mqa.training._random import WINDOWS, random_words
from haiku_mqa.training.corpus import Corpus


class Batch(NamedTuple):
    """What one step reads; a pytree of NumPy arrays.

    Attributes:
      tokens: int32 ``[B, T]``.
      labels: int32 ``[B, T]``, the token that follows each.
      mask: bool ``[B, T]``, which labels count; all if ``None``.
      segment_ids: int32 ``[B, T]`` where documents are packed, from 1 in each row,
        with 0 for padding; ``None`` where a row is one piece of text.
      positions: int32 ``[B, T]`` where documents are packed, from zero in each
        segment; ``None`` where they count through the row.

    Example:
      >>> batch = RandomWindows(range(100), seq_len=4, batch_size=2, seed=0).batch(7)
      >>> bool((batch.labels[:, :-1] == batch.tokens[:, 1:]).all())
      True
    """

    tokens: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None
    segment_ids: np.ndarray | None = None
    positions: np.ndarray | None = None


class RandomWindows:
    """Sequences cut at random from one long row of tokens, as nanoGPT does.

    Every cut is equally likely, and cuts are drawn with replacement. Tokens are not
    copied, so they can be a memory map that is larger than memory.

    Example:
      >>> windows = RandomWindows(range(100), seq_len=4, batch_size=2, seed=0)
      >>> windows.batch(0).tokens.shape
      (2, 4)
      >>> mine = windows.batch(0, rows=slice(1, 2))  # the second of two processes'
      >>> bool((mine.tokens == windows.batch(0).tokens[1:]).all())
      True
      >>> RandomWindows(range(4), seq_len=4, batch_size=2, seed=0)
      Traceback (most recent call last):
      ValueError: tokens must be at least seq_len + 1 = 5, so that each has a next \
one, got 4
    """

    def __init__(self, tokens: Any, seq_len: int, batch_size: int, seed: int):
        """Checks all that ``batch`` needs.

        Args:
          tokens: Whole numbers, ``[num_tokens]``.
          seq_len: T, in tokens.
          batch_size: B, rows over all processes.
          seed: From 0 to 2**64 - 1.
        """
        self.seq_len = whole_number("seq_len", seq_len)
        self.batch_size = whole_number("batch_size", batch_size)
        self.seed = whole_number("seed", seed, 0, 2**64 - 1)
        self._tokens = check_tokens("tokens", tokens, self.seq_len)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a step: always the same one, on every machine.

        Args:
          step: From 0 to 2**64 - 1.
          rows: Which of the B rows to make; all if ``None``.

        Returns:
          The batch; every label counts.

        Raises:
          ValueError: The step or the rows are out of range.
        """
        step = whole_number("step", step, 0, 2**64 - 1)
        words = random_words(self.seed, WINDOWS, step, self.batch_size)
        cuts = len(self._tokens) - self.seq_len  # how many there are
        # The remainder of 64 bits is as good as even: off by less than 2**-20 of
        # itself for any corpus below 2**44 tokens.
        starts = (words % np.uint64(cuts)).astype(np.int64)[check_rows(rows, words)]
        read = self._tokens[starts[:, None] + np.arange(self.seq_len + 1)]
        read = read.astype(np.int32)
        tokens, labels = read[:, :-1].copy(), read[:, 1:].copy()
        return Batch(tokens, labels, np.ones(tokens.shape, bool))


def validation_batches(
    tokens: Any, seq_len: int, batch_size: int, rows: slice | None = None
) -> Iterator[Batch]:
    """Walks a whole split once, in order: each token but the first is a label once.

    Rows follow one another without overlap. All batches have one shape: what is
    missing in the last is padded with zeros that the mask leaves out.

    Args:
      tokens: Whole numbers, ``[num_tokens]``.
      seq_len: T, in tokens.
      batch_size: B, rows over all processes.
      rows: Which of the B rows of each batch to make; all if ``None``.

    Returns:
      An iterator over the batches.

    Raises:
      ValueError: An argument is out of range, or there are fewer tokens than a
        sequence and its last label need.

    Example:
      >>> batches = list(validation_batches(range(10), seq_len=4, batch_size=2))
      >>> [batch.labels[batch.mask].tolist() for batch in batches]
      [[1, 2, 3, 4, 5, 6, 7, 8], [9]]
    """
    seq_len = whole_number("seq_len", seq_len)
    batch_size = whole_number("batch_size", batch_size)
    # Checked here and now, and not when the first batch is asked for.
    tokens = check_tokens("tokens", tokens, seq_len)
    places = np.arange(batch_size * seq_len).reshape(batch_size, seq_len)
    return _walk(tokens, places[check_rows(rows, places)], places.size)


def _walk(tokens: np.ndarray, places: np.ndarray, step: int) -> Iterator[Batch]:
    labels = len(tokens) - 1
    for start in range(0, labels, step):
        at = start + places
        mask = at < labels
        read, following = (
            np.where(mask, tokens[np.minimum(at + n, labels)], 0).astype(np.int32)
            for n in (0, 1)
        )
        yield Batch(read, following, mask)


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer) -> np.ndarray:
    """Returns a corpus as one row of tokens.

    Args:
      corpus: The documents.
      tokenizer: Whose first end token, if it has one, is put between documents.

    Returns:
      int32 ``[num_tokens]``.

    Raises:
      ValueError: A document cannot be said in the tokenizer's vocabulary.

    Example:
      >>> from haiku_mqa.text import ByteTokenizer
      >>> encode_corpus(Corpus(("ab", "c")), ByteTokenizer())
      array([97, 98, 99], dtype=int32)
    """
    documents = encode_documents(corpus, tokenizer)
    tokens = np.concatenate(documents)
    return tokens[:-1] if tokenizer.end_tokens else tokens


def encode_documents(corpus: Corpus, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Returns each document of a corpus as tokens.

    Args:
      corpus: The documents.
      tokenizer: Whose first end token, if it has one, ends each document.

    Returns:
      One int32 array for each document.

    Raises:
      ValueError: A document cannot be said in the tokenizer's vocabulary.

    Example:
      >>> from haiku_mqa.text import BytePairTokenizer
      >>> tokens = encode_documents(Corpus(("ab", "c")), BytePairTokenizer([]))
      >>> [document.tolist() for document in tokens]
      [[97, 98, 256], [99, 256]]
    """
    end = tokenizer.end_tokens[:1]
    return [
        np.asarray([*tokenizer.encode(text), *end], np.int32)
        for text in corpus.documents
    ]


# --- What is asked of arguments -------------------------------------------------------


def check_tokens(name: str, tokens: Any, seq_len: int) -> np.ndarray:
    """Returns tokens as an array, if there are enough for one sequence.

    Args:
      name: What the user calls them.
      tokens: Whole numbers, ``[num_tokens]``.
      seq_len: T.

    Returns:
      The same, not copied where they are an array.

    Raises:
      ValueError: They are no row of whole numbers, or too few.
    """
    tokens = as_tokens(name, tokens)
    if len(tokens) < seq_len + 1:
        raise ValueError(
            f"{name} must be at least seq_len + 1 = {seq_len + 1}, so that each has "
            f"a next one, got {len(tokens)}"
        )
    return tokens


def as_tokens(name: str, tokens: Any) -> np.ndarray:
    """Returns tokens as an array of one axis.

    Args:
      name: What the user calls them.
      tokens: Whole numbers, ``[num_tokens]``.

    Returns:
      The same, not copied where they are an array.

    Raises:
      ValueError: They are something else.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must be whole numbers of one axis, got {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    return array


def check_rows(rows: slice | None, of: Sequence[Any] | np.ndarray) -> slice:
    """Returns the slice that rows of a batch are taken with.

    Args:
      rows: A slice, or ``None`` for all.
      of: What is to be sliced: B things.

    Returns:
      The slice.

    Raises:
      ValueError: It is no slice, or takes no row.
    """
    rows = slice(None) if rows is None else rows
    if not isinstance(rows, slice) or not range(len(of))[rows]:
        raise ValueError(
            f"rows must be a slice that takes some of {len(of)} rows, got {rows!r}"
        )
    return rows
