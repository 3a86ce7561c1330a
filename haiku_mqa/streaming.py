"""Tokens to text as they come, for every kind of tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from haiku_mqa.text import AnyTokenizer


class Decoder(Protocol):
    """What makes text of tokens, one at a time."""

    def push(self, token: int, /) -> str:
        """Returns the text that is whole now that a token has come."""
        ...

    def finish(self) -> str:
        """Returns what is left."""
        ...


def text_decoder(tokenizer: Any) -> Decoder:
    """Returns what streams the tokens of a tokenizer, never half a character.

    Args:
      tokenizer: Any; of one from elsewhere only ``decode`` is needed.
    """
    from haiku_mqa import pretrained, text

    if isinstance(tokenizer, pretrained.Tokenizer):
        return pretrained.StreamDecoder(tokenizer)
    if isinstance(tokenizer, text.Tokenizer):
        return CorpusDecoder(tokenizer)
    return PluginDecoder(tokenizer)


class CorpusDecoder:
    """Streams tokens of which each says the same wherever it stands."""

    def __init__(self, tokenizer: AnyTokenizer):
        """Begins a text."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def push(self, token: int, /) -> str:
        """Returns the text that is whole now that a token has come."""
        self._ids.append(token)
        # Half a character is decoded as a mark at the end, until its rest comes.
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith("\ufffd") else self.finish()

    def finish(self) -> str:
        """Returns what is left."""
        text = self._tokenizer.decode(self._ids)
        self._ids.clear()
        return text


class PluginDecoder:
    """Streams what any tokenizer decodes, of which only ``decode`` is promised."""

    def __init__(self, tokenizer: Any):
        """Begins a text."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int, /) -> str:
        """Returns the text that is whole now that a token has come."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # Half a character is decoded as a mark at the end, until its rest comes.
        return "" if text.endswith("\ufffd") else self._unshown(text)

    def finish(self) -> str:
        """Returns what is left."""
        return self._unshown(self._tokenizer.decode(self._ids))

    def _unshown(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = len(text)
        return new
