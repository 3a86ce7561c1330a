"""From a corpus to the batches of a run, by step."""

from __future__ import annotations

from collections.abc import Iterator
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
from haiku_mqa.training.packing import PackedDocuments
from haiku_mqa.training.run.config import DataConfig

_AHEAD = 16  # batches that grain makes ready


class Source(Protocol):
    """What makes the batch of any step, always the same one."""

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step."""
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

    def batch(self, step: int) -> Batch:
        return self._windows.batch(step)._replace(mask=None)


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
      ValueError: A part has fewer tokens than a sequence and its last label need.
    """
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


def held_out_batches(config: DataConfig, data: Data) -> Iterator[Batch]:
    """Returns an iterator over the batches to validate on.

    Args:
      config: Of the data.
      data: Made for it.
    """
    size = config.eval_batch_size or config.batch_size
    return validation_batches(data.validation, config.seq_len, size)


def batches_from(
    config: DataConfig, source: Source, first: int, total: int
) -> Iterator[Batch]:
    """Returns an iterator over the batches of steps.

    Args:
      config: Of the data; its loader says whether they are made when they are asked
        for, or ahead of time by grain's threads.
      source: What makes them.
      first: The first step's.
      total: The one after the last step's.

    Raises:
      ValueError: Grain is asked for, and is not installed.
    """
    if config.loader == "memory":
        return map(source.batch, range(first, total))
    return _ahead(source, first, total)


class _Steps:
    """A source as the sequence that grain reads."""

    def __init__(self, source: Source, total: int):
        self._source, self._total = source, total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Batch:
        return self._source.batch(int(index))


def _ahead(source: Source, first: int, total: int) -> Iterator[Batch]:
    try:
        import grain
    except ImportError:
        raise ValueError(
            "data.loader = 'grain' needs the extra 'grain': "
            "pip install 'haiku-mqa[grain]'"
        ) from None
    # Batches are a function of the step, so there is no place in a stream to save.
    steps = grain.MapDataset.source(_Steps(source, total))[first:]
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    return iter(steps.to_iter_dataset(options))
