"""From a corpus to the batches of a run, by step."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from haiku_mqa.text import Tokenizer, train_tokenizer
from haiku_mqa.training.corpus import Corpus, split
from haiku_mqa.training.data import (
    Batch,
    RandomWindows,
    check_tokens,
    encode_corpus,
    encode_documents,
    validation_batches,
)
from haiku_mqa.training.grain_loader import batches_ahead, import_grain
from haiku_mqa.training.packing import PackedDocuments
from haiku_mqa.training.run.data_config import DataConfig


class Source(Protocol):
    """What makes the batch of any step, always the same one."""

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a step, or some rows of it."""
        ...


class Data(NamedTuple):
    """What a run reads.

    Attributes:
      train: The batches to train on, by step.
      validation: int32 ``[num_tokens]``.
      train_tokens: How many tokens ``train`` is made from.
    """

    train: Source
    validation: np.ndarray
    train_tokens: int


class _Windows:
    """Windows without their mask: where every label counts, it is only work."""

    def __init__(self, windows: RandomWindows):
        self._windows = windows

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        return self._windows.batch(step, rows)._replace(mask=None)


def make_tokenizer(config: DataConfig, corpus: Corpus) -> Tokenizer:
    """Returns the tokenizer that a config asks for.

    Characters are those of the whole corpus, so that validation meets no unknown
    one; pairs of bytes are learnt from the part to train on.

    Args:
      config: Of the data.
      corpus: The whole of it.

    Returns:
      The tokenizer.

    Raises:
      ValueError: The corpus is too small for the vocabulary.
    """
    if config.tokenizer == "bpe":
        corpus, _ = split(corpus, config.validation)
    return train_tokenizer(config.tokenizer, corpus.documents, config.vocab_size)


def check_tokenizer(config: DataConfig, tokenizer: Tokenizer) -> None:
    """Raises ``ValueError`` for a tokenizer that is not what a config asks for.

    Args:
      config: Of the data.
      tokenizer: Given, or read from a run's folder.

    Raises:
      ValueError: It is of another kind, or of another size.
    """
    if tokenizer.kind != config.tokenizer:
        raise ValueError(
            f"data.tokenizer must be {tokenizer.kind!r}, as the tokenizer that was "
            f"given is, got {config.tokenizer!r}"
        )
    if config.vocab_size not in (None, tokenizer.vocab_size):
        raise ValueError(
            f"data.vocab_size must be {tokenizer.vocab_size}, as the tokenizer that "
            f"was given has it, got {config.vocab_size}"
        )


def make_data(
    config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, seed: int
) -> Data:
    """Returns what a run reads.

    Where documents are packed, one of a single token is left out: there is nothing in
    it to foretell.

    Args:
      config: Of the data.
      corpus: The whole of it.
      tokenizer: What reads it.
      seed: Of the batches.

    Returns:
      The data.

    Raises:
      ValueError: A part has fewer tokens than a sequence and its last label need, or
        grain is asked for and not installed.
    """
    if config.loader == "grain":
        try:
            import_grain("data.loader = 'grain'")
        except ImportError as error:
            raise ValueError(str(error)) from None
    train, validation = split(corpus, config.validation)
    held_out = encode_corpus(validation, tokenizer)
    check_tokens("tokens to validate on", held_out, config.seq_len)
    if config.packing == "documents":
        encoded = encode_documents(train, tokenizer)
        # The cut between the parts may leave a document of a single token, too.
        documents = [tokens for tokens in encoded if len(tokens) > 1]
        packed = PackedDocuments(documents, config.seq_len, config.batch_size, seed)
        return Data(packed, held_out, sum(map(len, documents)))
    tokens = encode_corpus(train, tokenizer)
    check_tokens("tokens to train on", tokens, config.seq_len)
    windows = RandomWindows(tokens, config.seq_len, config.batch_size, seed)
    return Data(_Windows(windows), held_out, len(tokens))


def held_out_batches(
    config: DataConfig, data: Data, rows: slice | None = None
) -> Iterator[Batch]:
    """Returns an iterator over the batches to validate on.

    Args:
      config: Of the data.
      data: Made for it.
      rows: Which rows of each to make; all if ``None``.
    """
    size = config.validation_batch_size
    return validation_batches(data.validation, config.seq_len, size, rows)


def batches_from(
    config: DataConfig,
    source: Source,
    first: int,
    total: int,
    rows: slice | None = None,
) -> Generator[Batch]:
    """Returns the batches of steps.

    Args:
      config: Of the data; its loader says whether they are made when they are asked
        for, or ahead of time by grain's threads.
      source: What makes them.
      first: The first step's.
      total: The one after the last step's.
      rows: Which rows of each to make; all if ``None``.

    Returns:
      A generator. Threads that it has end when it is closed or forgotten.
    """
    make = functools.partial(source.batch, rows=rows)
    if config.loader == "grain":
        return batches_ahead(make, first, total)
    return (make(step) for step in range(first, total))
