"""What every tokenizer of this room can do."""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Protocol, SupportsIndex

import numpy as np
import tokenizers

from haiku_mqa._arguments import whole_number
from haiku_mqa._files import write_whole

TokenizerKind = Literal["bytes", "characters", "bpe"]
FORMAT = "haiku_mqa tokenizer 1"


class AnyTokenizer(Protocol):
    """What every tokenizer can do, wherever it comes from.

    That of a plugin need do no more. ``Tokenizer``, and the one that is read out of a
    model file, also have ``vocab_size`` and ``end_tokens``.

    Example:
      >>> from haiku_mqa.text import ByteTokenizer
      >>> def count(tokenizer: AnyTokenizer, text: str) -> int:
      ...     return len(tokenizer.encode(text))
      >>> count(ByteTokenizer(), "né")
      3
    """

    def encode(self, text: str, /) -> list[int]:
        """Returns the tokens of a text."""
        ...

    def decode(self, ids: Iterable[SupportsIndex], /) -> str:
        """Returns the text of tokens."""
        ...


class Tokenizer(abc.ABC):
    """What splits text into tokens, and is saved with what was trained on them.

    Two are equal if they make the same tokens of every text.

    Example:
      >>> from haiku_mqa.text import CharacterTokenizer
      >>> tokenizer = CharacterTokenizer("banana")
      >>> tokenizer.encode("nab"), tokenizer.vocab_size
      ([2, 0, 1], 3)
    """

    kind: ClassVar[TokenizerKind]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """V, how many tokens there are, those that end a text included."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end a text; ``encode`` makes them of no text."""
        return ()

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text.

        Args:
          text: Any text; for characters, of those that are known.

        Returns:
          Ids from 0 to V - 1.

        Raises:
          ValueError: The text cannot be said in this vocabulary.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of tokens.

        Args:
          ids: Whole numbers; a NumPy or JAX array of one axis will do.

        Returns:
          The text. Tokens that end a text say nothing, and bytes that are no UTF-8
          become U+FFFD.

        Raises:
          ValueError: An id is no token's.
        """

    @abc.abstractmethod
    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it, with the same ids.

        What ends a text is a token there that no text spells. A character that is
        unknown is refused there too.
        """

    @abc.abstractmethod
    def _fields(self) -> dict[str, Any]:
        """Returns what it is made of, as plain data that JSON can hold."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, for ``load_tokenizer``.

        Args:
          path: The file. A crash leaves it either as it was or whole.

        Raises:
          OSError: It cannot be written.
        """
        data = {"format": FORMAT, "kind": self.kind, **self._fields()}
        write_whole(path, (json.dumps(data, ensure_ascii=False) + "\n").encode())

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._fields() == self._fields()

    def __hash__(self) -> int:
        return hash((self.kind, self.vocab_size))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.vocab_size} tokens>"

    def _indices(self, ids: Iterable[SupportsIndex]) -> list[int]:
        return [whole_number("token id", i, 0, self.vocab_size - 1) for i in ids]


def utf8(text: str) -> bytes:
    """Returns a text in UTF-8; a lone surrogate, which has none, is refused."""
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate, {text[error.start]!r}, at character "
            f"{error.start}"
        ) from None


def code_points(text: str) -> np.ndarray:
    """Returns the code point of each character of a text."""
    return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))


def texts(documents: Iterable[str]) -> Iterable[str]:
    """Returns documents as they are, if they are several."""
    if isinstance(documents, str):  # whose letters would be taken for documents
        raise ValueError("documents must be a sequence of texts, got a single text")
    return documents
