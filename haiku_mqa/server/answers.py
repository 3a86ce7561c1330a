"""The fields of an answer, as OpenAI's API names them."""

from __future__ import annotations

import abc
import secrets
import time
from collections.abc import Sequence
from typing import Any

from haiku_mqa.server.choices import Choice, Piece
from haiku_mqa.server.likelihoods import TokenTexts, of_chat, of_completion

_END = Piece("")  # what a stream's last part of a choice has


class Shape(abc.ABC):
    """What the fields of an answer are called.

    Attributes:
      is_chat: Whether messages are answered, and not a prompt.
      kind: What a whole answer is called.
      chunk_kind: What a piece of a streamed answer is called.
      prefix: Of an answer's id.
    """

    is_chat = False
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, texts: TokenTexts):
        """Begins an answer.

        Args:
          model: Its model's name.
          texts: What that model's tokens say.
        """
        self._texts = texts
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def answer(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns a whole answer."""
        return {**self._head, "object": self.kind, "choices": choices}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns a piece of a streamed answer."""
        return {**self._head, "object": self.chunk_kind, "choices": choices}

    def openings(self, choice: Choice) -> list[dict[str, Any]]:
        """Returns what a stream says of a choice before its text."""
        del choice
        return []

    @abc.abstractmethod
    def whole(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Returns a choice with all its text."""

    @abc.abstractmethod
    def part(self, choice: Choice, piece: Piece | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""


class Completion(Shape):
    """Text that goes on from a prompt."""

    def whole(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Returns a choice with all its text."""
        return self._choice(choice, piece, choice.finish_reason)

    def part(self, choice: Choice, piece: Piece | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""
        if piece is None:
            return self._choice(choice, _END, choice.finish_reason)
        return self._choice(choice, piece, None)

    def _choice(
        self, choice: Choice, piece: Piece, reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": piece.text,
            "logprobs": of_completion(piece.tokens, self._texts)
            if choice.with_logprobs and piece is not _END
            else None,
            "finish_reason": reason,
        }


class ChatCompletion(Shape):
    """What an assistant says next."""

    is_chat = True
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def openings(self, choice: Choice) -> list[dict[str, Any]]:
        """Returns what a stream says of a choice before its text."""
        return [self._choice(choice, "delta", {"role": "assistant", "content": ""})]

    def whole(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Returns a choice with all its text."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        reason = choice.finish_reason
        return self._choice(choice, "message", message, piece, reason)

    def part(self, choice: Choice, piece: Piece | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""
        if piece is None:
            return self._choice(choice, "delta", {}, reason=choice.finish_reason)
        return self._choice(choice, "delta", {"content": piece.text}, piece)

    def _choice(
        self,
        choice: Choice,
        field: str,
        said: Any,
        piece: Piece | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        told = choice.with_logprobs and piece is not None
        return {
            "index": choice.index,
            field: said,
            "logprobs": of_chat(piece.tokens, self._texts) if told and piece else None,
            "finish_reason": reason,
        }


def usage(choices: Sequence[Choice], read: int) -> dict[str, Any]:
    """Returns how many tokens were read and made for an answer."""
    made = sum(choice.num_tokens for choice in choices)
    # A prompt counts once, however many choices it has.
    reused = sum(choice.num_reused for choice in choices if not choice.sample)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
