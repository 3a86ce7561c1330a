"""Tokens to text as they come, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
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
    if isinstance(tokenizer, pretrained.FolderTokenizer):
        return WindowDecoder(tokenizer)
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


class WindowDecoder:
    """Streams tokens that say something else at the start of a text than in it.

    Such as a word's piece, whose space is left out where it comes first. What was
    shown last is decoded again with what is new, and nothing before it. Where bytes
    are no text, the marks for them can be fewer than in ``decode`` of the whole.
    """

    def __init__(self, tokenizer: AnyTokenizer):
        """Begins a text."""
        self._tokenizer = tokenizer
        self._before: list[int] = []  # shown already, and said something
        self._new: list[int] = []

    def push(self, token: int, /) -> str:
        """Returns the text that is whole now that a token has come."""
        self._new.append(token)
        text = self._unshown()
        # Half a character is decoded as a mark at the end, until its rest comes.
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._new = self._new, []
        return text

    def finish(self) -> str:
        """Returns what is left."""
        text = self._unshown()
        self._before, self._new = [], []
        return text

    def _unshown(self) -> str:
        shown = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._new)[len(shown) :]


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


class StoppedText:
    """Text of tokens, up to the first of some texts, of which none is ever shown.

    Example:
      >>> class Letters:
      ...     def push(self, token): return chr(token)
      ...     def finish(self): return ""
      >>> text = StoppedText(Letters(), ["bc"])
      >>> [text.push(ord(letter)) for letter in "abaabc"], text.is_stopped
      (['a', '', 'ba', 'a', '', ''], True)
    """

    def __init__(self, decoder: Decoder, stops: Sequence[str]):
        """Begins a text.

        Args:
          decoder: What makes text of tokens.
          stops: Where it ends; none is empty.
        """
        self.is_stopped = False
        self.length = 0
        self._decoder = decoder
        self._stops = tuple(stops)
        self._held = ""  # what may be the beginning of a stop

    def push(self, token: int) -> str:
        """Returns the text that may be shown now that a token has come."""
        new = self._decoder.push(token)
        self.length += len(new)
        text = self._cut(self._held + new)
        kept = 0 if self.is_stopped else self._overlap(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Returns what is left where no more tokens come."""
        return self._cut(self._held + self._decoder.finish())

    def _cut(self, text: str) -> str:
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if not places:
            return text
        self.is_stopped = True
        return text[: min(places)]

    def _overlap(self, text: str) -> int:
        """Returns how many letters at the end may begin a stop."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
