"""Text to tokens and back, by the vocabulary of a model file."""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, SupportsIndex

from haiku_mqa.pretrained import chat
from haiku_mqa.pretrained._byte_pairs import byte_pairs, missing_bytes, pieces_of
from haiku_mqa.pretrained._vocabulary import Vocabulary, read_vocabulary

# Unicode promises that these 32 are never text, so one can mark a place in text.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer in a GGUF file's metadata.

    Args:
      metadata: As ``read_gguf`` returns it.

    Returns:
      The tokenizer.

    Raises:
      ValueError: ``tokenizer.ggml.model`` is not ``gpt2``, or ``tokenizer.ggml.pre``
        is not ``smollm``.
      FormatError: The vocabulary makes no sense; the key is named.

    Example:
      >>> tokenizer_from_gguf({"tokenizer.ggml.model": "bert"})
      Traceback (most recent call last):
      ValueError: unknown tokenizer.ggml.model 'bert': Allowed: gpt2
    """
    return Tokenizer(read_vocabulary(metadata))


class Tokenizer:
    """Byte-pair tokens, with control tokens kept apart from text.

    A control token (``<|im_start|>``) steers the model. Text that merely spells one
    is text: ``encode`` splits it like any other, so that what a user writes cannot
    end its own turn or begin the system's. Only ``encode(..., control_tokens=True)``
    reads them as such. ``encode_chat`` does so for what the chat template writes,
    and never for what is in a message.

    Example:
      >>> alphabet = [*"!abcdefghijklmnopqrstuvwxyz", "<|im_end|>"]
      >>> tokenizer = Tokenizer(Vocabulary(
      ...     tokens=[*alphabet, "an"], merges=[("a", "n")], control=(27,),
      ...     user_defined=(), bos_token=None, end_tokens=(27,), prefix=(), suffix=(),
      ...     chat_template=None))
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
        self._missing_bytes = missing_bytes(tokens)
        self._control = frozenset(vocabulary.control)
        # One letter is never a control token: it would be found in every text.
        self._id_of_control = {
            tokens[i]: i for i in vocabulary.control if len(tokens[i]) > 1
        }
        self._control_pattern = _pattern(self._id_of_control)
        self._user_pattern = _pattern(tokens[i] for i in vocabulary.user_defined)

    @property
    def vocab_size(self) -> int:
        """V, how many tokens there are, control tokens included."""
        return len(self._vocabulary.tokens)

    @property
    def bos_token(self) -> int | None:
        """The id that begins a sequence, if there is one."""
        return self._vocabulary.bos_token

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end an answer: the end of the sequence, or of a turn."""
        return self._vocabulary.end_tokens

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, in Jinja, if it has one."""
        return self._vocabulary.chat_template

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        control_tokens: bool = False,
    ) -> list[int]:
        """Returns the tokens of a text.

        Args:
          text: Any text.
          add_special_tokens: Whether to add what the model file asks to have around
            a text, such as the token that begins a sequence. (SmolLM2 asks for
            none.)
          control_tokens: Whether spelled control tokens are read as such. Only for
            text that no stranger had a hand in.

        Returns:
          Ids.

        Raises:
          ValueError: The text has a lone surrogate, or a character for which the
            vocabulary has no bytes (other tokenizers drop it without a word).
        """
        _check_text(text)
        encode = self._encode_with_control if control_tokens else self._encode_text
        ids = encode(text)
        if add_special_tokens:
            return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix]
        return ids

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
        pieces = [self._piece(token, skip_special_tokens) for token in ids]
        return b"".join(pieces).decode(errors="replace")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns messages as the text that the model's chat template makes of them.

        To be read. For tokens call ``encode_chat``: in this text, control tokens
        that the template wrote look like those that a message merely spells.

        Args:
          messages: Mappings of ``role`` and ``content``, oldest first.
          add_generation_prompt: Whether it ends where the assistant's answer begins.

        Returns:
          The text.

        Raises:
          ValueError: There is no chat template, it fails, or the messages are not
            as they should be.
        """
        if self.chat_template is None:
            raise ValueError("the model file has no chat template")
        ends = self._vocabulary.end_tokens
        return chat.render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._text_of(self.bos_token),
            eos_token=self._text_of(ends[0] if ends else None),
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Returns messages as the tokens that the model was trained to see.

        Control tokens are those that the template writes. A message that spells one
        is encoded as text.

        Args:
          messages: Mappings of ``role`` and ``content``, oldest first.
          add_generation_prompt: Whether it ends where the assistant's answer begins.

        Returns:
          Ids.

        Raises:
          ValueError: As ``render_chat`` and ``encode``.
        """
        messages = chat.check_messages(messages)
        # Spelled control tokens are broken by a mark before the template sees them,
        # and the mark is taken out once the true ones are found.
        mark = self._unused_character(messages)
        for message in messages:
            message["content"] = self._control_pattern.sub(
                lambda match: match[0][:1] + mark + match[0][1:], message["content"]
            )
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        _check_text(text)
        return self._encode_with_control(text, mark)

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
        text = text.replace(mark, "") if mark else text
        ids = self._bpe.encode(text, add_special_tokens=False).ids
        pieces = self._pieces
        if sum(len(pieces[token]) for token in ids) != len(text.encode()):
            self._raise_unspellable(text)
        return ids

    def _raise_unspellable(self, text: str) -> NoReturn:
        spelled = self._user_pattern.sub("", text)
        lost = (c for c in spelled if set(c.encode()) & set(self._missing_bytes))
        raise ValueError(
            f"text has {next(lost, text)!r}, for which the vocabulary has no token"
        )

    def _unused_character(self, messages: Iterable[Mapping[str, str]]) -> str:
        used = {self.chat_template or "", *(m["content"] for m in messages)}
        for character in _NONCHARACTERS:
            if not any(character in text for text in used):
                return character
        raise ValueError("messages use every noncharacter from U+FDD0 to U+FDEF")

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
      ...     bos_token=None, end_tokens=(), prefix=(), suffix=(), chat_template=None))
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
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Returns what is left, U+FFFD for a character that never became whole."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    # Where there are none, a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate, {text[error.start]!r}, at character "
            f"{error.start}"
        ) from None
