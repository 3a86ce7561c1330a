"""Texts that end a row, wherever the borders of its tokens fall."""

from __future__ import annotations

from collections.abc import Sequence

from haiku_mqa.text import AnyTokenizer


class StopStrings:
    r"""Texts of which the first to come ends a row.

    Example:
      >>> from haiku_mqa.text import ByteTokenizer
      >>> stops = StopStrings(["\n\n", "END"], ByteTokenizer())
      >>> stops.find(list(b"To be. END"), seen=4)
      10
      >>> stops.text(list(b"To be. END"))
      'To be. '
    """

    def __init__(self, stop: Sequence[str], tokenizer: AnyTokenizer):
        """Keeps what to look for.

        Args:
          stop: The texts.
          tokenizer: Says what tokens say.

        Raises:
          ValueError: A text is empty, or no text.
        """
        if isinstance(stop, str):
            raise ValueError(f"stop must be a list of texts, got the text {stop!r}")
        for place, text in enumerate(stop):
            if not isinstance(text, str) or not text:
                raise ValueError(
                    f"stop[{place}] must be a text of at least one character, "
                    f"got {text!r}"
                )
        self._stop = tuple(stop)
        self._tokenizer = tokenizer

    def find(self, tokens: Sequence[int], seen: int) -> int | None:
        """Returns with how many tokens the first stop string is whole.

        Args:
          tokens: A row's new tokens.
          seen: How many of them are known to hold none.

        Returns:
          The number of tokens; ``None`` where there is no stop string.
        """
        if not self._holds(tokens):
            return None
        counts = range(seen + 1, len(tokens))
        return next((n for n in counts if self._holds(tokens[:n])), len(tokens))

    def text(self, tokens: Sequence[int]) -> str:
        """Returns what tokens say before the first stop string."""
        text = self._tokenizer.decode(tokens)
        places = [text.find(stop) for stop in self._stop]
        return text[: min((at for at in places if at >= 0), default=len(text))]

    def _holds(self, tokens: Sequence[int]) -> bool:
        # Half a character is decoded as a mark at the end, until its rest comes.
        text = self._tokenizer.decode(tokens).rstrip("\ufffd")
        return any(stop in text for stop in self._stop)
