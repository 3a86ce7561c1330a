"""Text to tokens and back, by a vocabulary that is made from the corpus."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex, get_args

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from haiku_mqa._arguments import whole_number
from haiku_mqa.errors import FormatError, unknown_name
from haiku_mqa.text import _byte_pairs
from haiku_mqa.text.tokenizer import (
    FORMAT,
    Tokenizer,
    TokenizerKind,
    code_points,
    texts,
    utf8,
)

_ANY_CHARACTER = tokenizers.Regex(r"[\s\S]")
_END = "<|endoftext|>"  # as GPT-2 spells it


class ByteTokenizer(Tokenizer):
    """The 256 bytes, for text of every kind.

    Example:
      >>> ByteTokenizer().encode("né")
      [110, 195, 169]
    """

    kind = "bytes"

    @property
    def vocab_size(self) -> int:
        """256."""
        return 256

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of a text in UTF-8."""
        return list(utf8(text))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of bytes; U+FFFD for what is no UTF-8."""
        return bytes(self._indices(ids)).decode(errors="replace")

    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it: byte pairs without pairs."""
        return _byte_pairs.library(_byte_pairs.vocabulary(()), ())

    def _fields(self) -> dict[str, Any]:
        return {}


class CharacterTokenizer(Tokenizer):
    """The characters of a text, by code point, as char-rnn and nanoGPT have them.

    A character that the text has not is refused, by name and place: there is no
    token for it.

    Example:
      >>> tokenizer = CharacterTokenizer("hello")
      >>> tokenizer.characters
      'ehlo'
      >>> tokenizer.decode(tokenizer.encode("hole"))
      'hole'
      >>> tokenizer.encode("hell!")
      Traceback (most recent call last):
      ValueError: text has '!' (U+0021) at character 4, and the tokenizer knows only \
the 4 characters of the text that it was made from
    """

    kind = "characters"

    def __init__(self, text: str):
        """Makes one.

        Args:
          text: What to take characters from; the training text, or each just once.
        """
        utf8(text)
        if not text:
            raise ValueError("text must have a character, got an empty text")
        self._codes = np.unique(code_points(text))

    @property
    def characters(self) -> str:
        """Each character's place is its id."""
        return "".join(map(chr, self._codes.tolist()))

    @property
    def vocab_size(self) -> int:
        """V, how many characters there are."""
        return len(self._codes)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, one for each character.

        Args:
          text: A text of known characters.

        Returns:
          Ids.

        Raises:
          ValueError: A character is unknown; it is named, with its offset.
        """
        utf8(text)
        codes = code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(ids, len(self._codes) - 1)] == codes
        if not known.all():
            offset = int(np.argmin(known))
            raise ValueError(
                f"text has {text[offset]!r} (U+{ord(text[offset]):04X}) at character "
                f"{offset}, and the tokenizer knows only the {self.vocab_size} "
                "characters of the text that it was made from"
            )
        return ids.tolist()

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of tokens."""
        return "".join(chr(self._codes[i]) for i in self._indices(ids))

    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it: words of one character."""
        vocab = {character: i for i, character in enumerate(self.characters)}
        # A word that is not there is an error where no token stands for it.
        library = tokenizers.Tokenizer(models.WordLevel(vocab=vocab))
        library.pre_tokenizer = pre_tokenizers.Split(_ANY_CHARACTER, "isolated")
        library.decoder = decoders.Fuse()
        return library

    def _fields(self) -> dict[str, Any]:
        return {"characters": self.characters}


class BytePairTokenizer(Tokenizer):
    """Bytes, and pairs of them merged by how often they stand together.

    Follows Sennrich et al. 2016, *Neural Machine Translation of Rare Words with
    Subword Units*, over bytes as in Radford et al. 2019, *Language Models are
    Unsupervised Multitask Learners*, with GPT-2's way to cut text into words. The
    last id ends a text, and no text is encoded to it.

    Example:
      >>> tokenizer = BytePairTokenizer.train(["banana bandana"], vocab_size=260)
      >>> tokenizer.merges
      (('a', 'n'), ('b', 'an'), ('an', 'a'))
      >>> tokenizer.encode("band"), tokenizer.end_tokens
      ([257, 100], (259,))
      >>> tokenizer.decode(tokenizer.encode("Any text at all… is known."))
      'Any text at all… is known.'
    """

    kind = "bpe"

    def __init__(self, merges: Iterable[tuple[str, str]]):
        """Makes one of known merges; ``train`` is the usual way.

        Args:
          merges: Pairs of tokens that become one, first ones first, in GPT-2's
            letters for bytes.
        """
        self._merges = tuple((left, right) for left, right in merges)
        self._tokens = _byte_pairs.vocabulary(self._merges)
        self._pieces = _byte_pairs.pieces(self._tokens)
        self._bpe = _byte_pairs.library(self._tokens, self._merges)

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> BytePairTokenizer:
        """Returns the tokenizer that documents ask for; always the same one.

        Args:
          documents: Texts.
          vocab_size: V, how many tokens there shall be, at least 257: the bytes and
            one to end a text.

        Returns:
          The tokenizer.

        Raises:
          ValueError: The size is too small, or larger than the documents allow.
        """
        vocab_size = whole_number("vocab_size", vocab_size, 257)
        tokenizer = cls(_byte_pairs.train(texts(documents), vocab_size - 1))
        if tokenizer.vocab_size < vocab_size:
            raise ValueError(
                f"vocab_size must be from 257 to {tokenizer.vocab_size}, where every "
                f"word of these documents is one token, got {vocab_size}"
            )
        return tokenizer

    @property
    def merges(self) -> tuple[tuple[str, str], ...]:
        """Pairs of tokens that become one, first ones first."""
        return self._merges

    @property
    def vocab_size(self) -> int:
        """V: bytes, merged tokens, and the one that ends a text."""
        return len(self._tokens) + 1

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The last id."""
        return (len(self._tokens),)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of any text."""
        utf8(text)
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of tokens; nothing for the one that ends a text."""
        pieces = [*self._pieces, b""]
        data = b"".join(pieces[i] for i in self._indices(ids))
        return data.decode(errors="replace")

    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it."""
        end = _byte_pairs.unused(self._tokens, _END)
        return _byte_pairs.library([*self._tokens, end], self._merges)

    def _fields(self) -> dict[str, Any]:
        return {"merges": [list(pair) for pair in self._merges]}


def train_tokenizer(
    kind: TokenizerKind, documents: Iterable[str], vocab_size: int | None = None
) -> Tokenizer:
    """Returns a tokenizer for documents.

    Args:
      kind: ``"characters"`` (those of the documents), ``"bytes"`` or ``"bpe"``.
      documents: Texts to train on, such as a corpus's documents.
      vocab_size: V, for ``"bpe"`` alone, which needs it.

    Returns:
      The tokenizer.

    Raises:
      ValueError: There is no such kind, or the size is missing, out of range, or
        given to one that has its own.

    Example:
      >>> train_tokenizer("characters", ["To be, or not to be"]).vocab_size
      9
    """
    if kind not in get_args(TokenizerKind):
        raise unknown_name("tokenizer", str(kind), get_args(TokenizerKind))
    if kind == "bpe":
        size = whole_number("vocab_size", vocab_size, 257)
        return BytePairTokenizer.train(documents, size)
    if vocab_size is not None:
        raise ValueError(
            f"vocab_size must be None for {kind!r}, which has its own, got "
            f"{vocab_size!r}"
        )
    if kind == "bytes":
        return ByteTokenizer()
    return CharacterTokenizer("".join(texts(documents)))


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer that ``Tokenizer.save`` wrote.

    Args:
      path: The file.

    Returns:
      One that is equal to what was saved.

    Raises:
      FormatError: The file is damaged, or is something else.
      OSError: It cannot be read.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     CharacterTokenizer("hello").save(f"{folder}/tokenizer.json")
      ...     load_tokenizer(f"{folder}/tokenizer.json").characters
      'ehlo'
    """
    data = Path(path).read_bytes()
    try:
        return _tokenizer_of(json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path} is no tokenizer, or is damaged: {error}") from None


def _tokenizer_of(data: Any) -> Tokenizer:
    fields = dict(data) if isinstance(data, dict) else {}
    if fields.pop("format", None) != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    kind = fields.pop("kind", None)
    if kind not in _FIELDS:
        raise unknown_name("kind", str(kind), _FIELDS)
    if list(fields) != _FIELDS[kind]:
        raise ValueError(f"fields of {kind!r} must be {_FIELDS[kind]}, got {[*fields]}")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "bpe":
        return BytePairTokenizer(fields["merges"])
    tokenizer = CharacterTokenizer(fields["characters"])
    if tokenizer.characters != fields["characters"]:
        raise ValueError("characters must stand in order, each once")
    return tokenizer


_FIELDS = {"bytes": [], "characters": ["characters"], "bpe": ["merges"]}
