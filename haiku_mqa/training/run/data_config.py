"""What a run reads, and in what pieces."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from haiku_mqa._arguments import is_number
from haiku_mqa.text.tokenizer import TokenizerKind
from haiku_mqa.training.run.fields import (
    names,
    require_choice,
    require_fields,
    take_whole,
)

Packing = Literal["windows", "documents"]
Loader = Literal["memory", "grain"]

_SMALLEST_BPE = 257  # the bytes, and the token that ends a text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads, and in what pieces.

    Attributes:
      source: A file, a folder or a ``.jsonl`` file, as ``read_corpus`` takes it; the
        corpus in the package if ``None``.
      tokenizer: ``"characters"``, ``"bytes"`` or ``"bpe"``, made from the corpus.
      vocab_size: V, for ``"bpe"`` alone, which needs it.
      validation: The share of characters, at the end, that is held out.
      packing: ``"windows"`` cuts rows anywhere out of the whole text;
        ``"documents"`` lays whole documents into rows, and none sees another.
      loader: ``"memory"`` makes a batch when it is asked for, ``"grain"`` ahead of
        time (needs the extra ``grain``). The batches are the same.
      seq_len: T, tokens in a row.
      batch_size: B, rows in a batch.
      eval_batch_size: Rows read at once for validation; ``batch_size`` if ``None``.

    Raises:
      ValueError: A field is out of what is allowed; the message names it, its
        value, and what is.

    Example:
      >>> DataConfig(tokenizer="bpe", vocab_size=1024).seq_len
      128
      >>> DataConfig(tokenizer="word")
      Traceback (most recent call last):
      ValueError: unknown tokenizer 'word': Allowed: bpe, bytes, characters
    """

    source: str | None = None
    tokenizer: TokenizerKind = "characters"
    vocab_size: int | None = None
    validation: float = 0.1
    packing: Packing = "windows"
    loader: Loader = "memory"
    seq_len: int = 128
    batch_size: int = 16
    eval_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            _take_path(self)
        for name, choices in (
            ("tokenizer", TokenizerKind),
            ("packing", Packing),
            ("loader", Loader),
        ):
            require_choice(name, getattr(self, name), get_args(choices))
        if self.tokenizer == "bpe":
            take_whole(self, "vocab_size", _SMALLEST_BPE)
        elif self.vocab_size is not None:
            raise ValueError(
                f"vocab_size must be None where tokenizer = {self.tokenizer!r}, which "
                f"has its own, got {self.vocab_size!r}"
            )
        if not is_number(self.validation) or not 0 < self.validation < 1:
            raise ValueError(
                f"validation must be a number in (0, 1), got {self.validation!r}"
            )
        take_whole(self, "seq_len", 1)
        take_whole(self, "batch_size", 1)
        if self.eval_batch_size is not None:
            take_whole(self, "eval_batch_size", 1)

    @property
    def validation_batch_size(self) -> int:
        """Rows read at once for validation."""
        return self.eval_batch_size or self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataConfig:
        """Returns the config that ``to_dict`` wrote.

        Args:
          data: Field names to plain values.

        Raises:
          ValueError: A name is no field (with the nearest that is), or a value is
            not allowed.
        """
        require_fields("DataConfig", data, names(cls))
        return cls(**data)


def _take_path(config: DataConfig) -> None:
    source = config.source
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise ValueError(f"source must be the path of a text, got {source!r}")
    object.__setattr__(config, "source", path)
