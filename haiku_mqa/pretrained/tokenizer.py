"""Text to tokens and back, by the vocabulary of a GGUF file."""

from __future__ import annotations

import codecs
import operator
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, SupportsIndex

import tokenizers

from haiku_mqa.pretrained._byte_pairs import (
    COMPOSED,
    SPACE,
    byte_pairs,
    missing_bytes,
    pieces_of,
    whole_library,
)
from haiku_mqa.pretrained._vocabulary import Vocabulary, read_vocabulary
from haiku_mqa.pretrained.chat_tokenizer import ChatTokenizer, pattern_of


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer in a GGUF file's metadata.

    Args:
      metadata: As ``read_gguf`` returns it.

    Returns:
      The tokenizer.

    Raises:
      ValueError: ``tokenizer.ggml.model`` or ``tokenizer.ggml.pre`` is not known.
      FormatError: The vocabulary makes no sense; the key is named.

    Example:
      >>> tokenizer_from_gguf({"tokenizer.ggml.model": "bert"})
      Traceback (most recent call last):
      ValueError: unknown tokenizer.ggml.model 'bert': Allowed: gpt2, llama
    """
    return Tokenizer(read_vocabulary(metadata))


class Tokenizer(ChatTokenizer):
    """The tokens of a GGUF file: byte pairs, or pieces of sentences.

    Example:
      >>> alphabet = [*"!abcdefghijklmnopqrstuvwxyz", "<|im_end|>"]
      >>> tokenizer = Tokenizer(Vocabulary(
      ...     tokens=[*alphabet, "an"], merges=[("a", "n")], control=(27,),
      ...     user_defined=(), pre="gpt-2", bos_token=None, end_tokens=(27,), prefix=(),
      ...     suffix=(), chat_template=None))
      >>> tokenizer.encode("banana")
      [2, 28, 28, 1]
      >>> tokenizer.decode([2, 28, 28, 1, 27])
      'banana'
    """

    def __init__(self, vocabulary: Vocabulary):
        """Builds it; ``tokenizer_from_gguf`` is the usual way."""
        tokens = vocabulary.tokens
        self._vocabulary = vocabulary
        self._bpe = byte_pairs(vocabulary)
        self._pieces = pieces_of(vocabulary)
        self._missing_bytes = missing_bytes(vocabulary)
        self._control = frozenset(vocabulary.control)
        # One letter is never a control token: it would be found in every text.
        self._id_of_control = {
            tokens[i]: i for i in vocabulary.control if len(tokens[i]) > 1
        }
        super().__init__(vocabulary, self._id_of_control)
        self._user_pattern = pattern_of(tokens[i] for i in vocabulary.user_defined)

    @property
    def vocab_size(self) -> int:
        """V, how many tokens there are, control tokens included."""
        return len(self._vocabulary.tokens)

    def decode(
        self, ids: Iterable[SupportsIndex], *, skip_special_tokens: bool = True
    ) -> str:
        """Returns the text of tokens.

        Args:
          ids: Whole numbers; a NumPy or JAX array of one axis will do.
          skip_special_tokens: Whether control tokens are left out, or spelled.

        Returns:
          The text; bytes that are no UTF-8 become U+FFFD.

        Raises:
          ValueError: An id is no token's.
        """
        decoder = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
        texts = [decoder.push(token) for token in ids]
        return "".join([*texts, decoder.finish()])

    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it."""
        return whole_library(self._vocabulary)

    # --- Parts -----------------------------------------------------------------

    def _encode_with_control(self, text: str, mark: str = "") -> list[int]:
        ids: list[int] = []
        start = 0
        for match in self._control_pattern.finditer(text):
            ids += self._encode_text(text[start : match.start()], mark)
            ids.append(self._id_of_control[match[0]])
            start = match.end()
        return ids + self._encode_text(text[start:], mark)

    def _encode_text(self, text: str, mark: str = "") -> list[int]:
        text = self._prepared(text.replace(mark, "") if mark else text)
        ids = self._bpe.encode(text, add_special_tokens=False).ids
        pieces = self._pieces
        if sum(len(pieces[token]) for token in ids) != len(text.encode()):
            self._raise_unspellable(text)
        return ids

    def _prepared(self, text: str) -> str:
        """Returns a text as the model's vocabulary has it, before it is split."""
        if self._vocabulary.pre in COMPOSED:
            return unicodedata.normalize("NFC", text)
        if self._vocabulary.pre is not None:
            return text
        text = text.replace(SPACE, " ")  # which no token tells apart
        return f" {text}" if self._vocabulary.space_first and text else text

    def _raise_unspellable(self, text: str) -> NoReturn:
        spelled = self._user_pattern.sub("", text)
        lost = (c for c in spelled if set(c.encode()) & set(self._missing_bytes))
        raise ValueError(
            f"text has {next(lost, text)!r}, for which the vocabulary has no token"
        )

    def _piece(self, token: SupportsIndex, skip_special_tokens: bool) -> bytes:
        index = operator.index(token)
        if not 0 <= index < len(self._pieces):
            raise ValueError(
                f"token id must be from 0 to {len(self._pieces) - 1}, got {index}"
            )
        if skip_special_tokens and index in self._control:
            return b""
        return self._pieces[index]

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self._vocabulary.tokens[token]


class StreamDecoder:
    """Decodes tokens one at a time, without ever showing half a character.

    A character can take several tokens; its text comes with the last of them. All
    that is pushed, and what ``finish`` returns, is together what ``decode`` returns.
    The work for a token does not grow with the text.

    Example:
      >>> euro = Tokenizer(Vocabulary(
      ...     tokens=["â", "Ĥ", "¬"], merges=[], control=(), user_defined=(),
      ...     pre="gpt-2", bos_token=None, end_tokens=(), prefix=(), suffix=(),
      ...     chat_template=None))
      >>> decoder = StreamDecoder(euro)
      >>> [decoder.push(token) for token in (0, 1, 2, 0)], decoder.finish()
      (['', '', '€', ''], '\ufffd')
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True):
        """Begins a text.

        Args:
          tokenizer: Whose tokens they are.
          skip_special_tokens: Whether control tokens are left out, or spelled.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_space_first = tokenizer._vocabulary.space_first

    def push(self, token: SupportsIndex) -> str:
        """Returns the text that is whole now that a token has come.

        Args:
          token: An id.

        Returns:
          The text, which can be empty.

        Raises:
          ValueError: The id is no token's.
        """
        piece = self._tokenizer._piece(token, self._skip_special_tokens)
        if self._has_space_first and piece:
            piece = piece.removeprefix(b" ")
            self._has_space_first = False
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Returns what is left, U+FFFD for a character that never became whole."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._has_space_first = self._tokenizer._vocabulary.space_first
        return rest
