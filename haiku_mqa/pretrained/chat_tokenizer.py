"""Text to tokens and back, with control tokens kept apart from text."""

from __future__ import annotations

import abc
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import tokenizers

from haiku_mqa.pretrained import chat
from haiku_mqa.pretrained._tokenizer_files import write_tokenizer
from haiku_mqa.pretrained.special_tokens import SpecialTokens

# Unicode promises that these 32 are never text, so one can mark a place in text.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ChatTokenizer(abc.ABC):
    """What every tokenizer can do that came with a model.

    A control token (``<|im_start|>``) steers the model. Text that merely spells one
    is text: ``encode`` splits it like any other, so that what a user writes cannot
    end its own turn or begin the system's. Only ``encode(..., control_tokens=True)``
    reads them as such. ``encode_chat`` does so for what the chat template writes,
    and never for what is in a message.

    Example:
      >>> from haiku_mqa.pretrained import Tokenizer
      >>> issubclass(Tokenizer, ChatTokenizer)
      True
    """

    def __init__(self, special: SpecialTokens, control: Iterable[str]):
        """Builds it.

        Args:
          special: Which tokens are what, and the chat template.
          control: The texts of its control tokens.
        """
        self._special = special
        self._control_pattern = pattern_of(control)

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """V, how many tokens there are, control tokens included."""

    @property
    def bos_token(self) -> int | None:
        """The id that begins a sequence, if there is one."""
        return self._special.bos_token

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end an answer: the end of the sequence, or of a turn."""
        return self._special.end_tokens

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, in Jinja, if it has one."""
        return self._special.chat_template

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
          ValueError: The text has a lone surrogate; or, of a GGUF file's, a character
            for which the vocabulary has no bytes (others drop it without a word).
        """
        check_text(text)
        encode = self._encode_with_control if control_tokens else self._encode_text
        ids = encode(text)
        if add_special_tokens:
            return [*self._special.prefix, *ids, *self._special.suffix]
        return ids

    @abc.abstractmethod
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
            raise ValueError("the model has no chat template")
        ends = self._special.end_tokens
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
        check_text(text)
        return self._encode_with_control(text, mark)

    @abc.abstractmethod
    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``.

        Args:
          folder: Which exists.

        Raises:
          OSError: They cannot be written.
        """
        ends = self.end_tokens
        write_tokenizer(
            Path(folder),
            self.to_library(),
            bos_token=self._text_of(self.bos_token) or None,
            eos_token=self._text_of(ends[0] if ends else None) or None,
            chat_template=self.chat_template,
        )

    # --- Parts -----------------------------------------------------------------

    @abc.abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Returns the tokens of a text in which nothing is a control token."""

    @abc.abstractmethod
    def _encode_with_control(self, text: str, mark: str = "") -> list[int]:
        """Returns the tokens of a text whose control tokens are such.

        Args:
          text: The text.
          mark: What is taken out of it once control tokens are found.
        """

    @abc.abstractmethod
    def _text_of(self, token: int | None) -> str:
        """Returns how a token is spelled; nothing for ``None``."""

    def _unused_character(self, messages: Iterable[Mapping[str, str]]) -> str:
        used = {self.chat_template or "", *(m["content"] for m in messages)}
        for character in _NONCHARACTERS:
            if not any(character in text for text in used):
                return character
        raise ValueError("messages use every noncharacter from U+FDD0 to U+FDEF")


def pattern_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Returns what finds any of some texts, the longest first."""
    longest_first = sorted(texts, key=len, reverse=True)
    # Where there are none, a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def check_text(text: str) -> None:
    """Raises ``ValueError`` for what is no text that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate, {text[error.start]!r}, at character "
            f"{error.start}"
        ) from None
