"""The fields of an answer, as OpenAI's API names them."""

from __future__ import annotations

import abc
import secrets
import time
from collections.abc import Sequence
from typing import Any

from haiku_mqa.server.choices import Choice


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

    def __init__(self, model: str):
        """Begins an answer of a model, by its name."""
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
    def whole(self, choice: Choice, text: str) -> dict[str, Any]:
        """Returns a choice with all its text."""

    @abc.abstractmethod
    def part(self, choice: Choice, piece: str | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""


class Completion(Shape):
    """Text that goes on from a prompt."""

    def whole(self, choice: Choice, text: str) -> dict[str, Any]:
        """Returns a choice with all its text."""
        return self._choice(choice, text, choice.finish_reason)

    def part(self, choice: Choice, piece: str | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""
        reason = choice.finish_reason if piece is None else None
        return self._choice(choice, piece or "", reason)

    def _choice(self, choice: Choice, text: str, reason: str | None) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": None,
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

    def whole(self, choice: Choice, text: str) -> dict[str, Any]:
        """Returns a choice with all its text."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._choice(choice, "message", message, choice.finish_reason)

    def part(self, choice: Choice, piece: str | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""
        if piece is None:
            return self._choice(choice, "delta", {}, choice.finish_reason)
        return self._choice(choice, "delta", {"content": piece})

    def _choice(
        self, choice: Choice, field: str, said: Any, reason: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            field: said,
            "logprobs": None,
            "finish_reason": reason,
        }


def usage(choices: Sequence[Choice], read: int) -> dict[str, int]:
    """Returns how many tokens were read and made for an answer."""
    made = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
    }
