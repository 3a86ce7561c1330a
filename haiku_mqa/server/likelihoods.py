"""How likely tokens were, as OpenAI's API tells it of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from haiku_mqa import pretrained

_NO_CHARACTER = "\ufffd"


class TokenTexts:
    """What single tokens of a tokenizer say.

    Example:
      >>> class Letters:
      ...     def decode(self, ids): return "".join(map(chr, ids))
      >>> TokenTexts(Letters()).text(97)
      'a'
    """

    def __init__(self, tokenizer: Any):
        """Takes any tokenizer; of one from elsewhere only ``decode`` is needed."""
        self._decode = (
            functools.partial(tokenizer.decode, skip_special_tokens=False)
            if isinstance(tokenizer, pretrained.ChatTokenizer)
            else tokenizer.decode
        )

    def text(self, token: int) -> str:
        """Returns what a token says, or its id where that is no whole character."""
        text = self._decode([token])
        return f"token_id:{token}" if _NO_CHARACTER in text else text

    def bytes(self, token: int) -> list[int] | None:
        """Returns a token's text in UTF-8; ``None`` where it is no whole character."""
        text = self._decode([token])
        return None if _NO_CHARACTER in text else list(text.encode())


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely one token was, and what else could have stood there.

    Attributes:
      token: Its id.
      logprob: Its log-probability.
      likeliest: The likeliest tokens at its place with theirs, the likeliest first.
      offset: How many characters of the answer came before it.
    """

    token: int
    logprob: float
    likeliest: Sequence[tuple[int, float]]
    offset: int


def of_completion(tokens: Sequence[Likelihood], texts: TokenTexts) -> dict[str, Any]:
    """Returns ``logprobs`` of a completion's choice.

    Args:
      tokens: All of the choice, or of a piece of it.
      texts: What tokens say.
    """
    is_ranked = any(each.likeliest for each in tokens)
    return {
        "tokens": [texts.text(each.token) for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        # The token itself is among them, however unlikely.
        "top_logprobs": [
            {
                texts.text(token): logprob
                for token, logprob in (*each.likeliest, (each.token, each.logprob))
            }
            for each in tokens
        ]
        if is_ranked
        else None,
        "text_offset": [each.offset for each in tokens],
    }


def of_chat(tokens: Sequence[Likelihood], texts: TokenTexts) -> dict[str, Any]:
    """Returns ``logprobs`` of a chat's choice.

    Args:
      tokens: All of the choice, or of a piece of it.
      texts: What tokens say.
    """

    def told(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": texts.text(token),
            "logprob": logprob,
            "bytes": texts.bytes(token),
        }

    content = [
        told(each.token, each.logprob)
        | {"top_logprobs": [told(*other) for other in each.likeliest]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}
