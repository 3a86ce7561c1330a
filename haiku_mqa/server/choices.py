"""One answer as it comes out of the engine: text, piece by piece, up to its stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from haiku_mqa.generation import Engine, Sampling
from haiku_mqa.server.api_errors import ApiError, stopping
from haiku_mqa.streaming import Decoder

FinishReason = Literal["stop", "length"]


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
        self._decoder = decoder
        self._stops = tuple(stops)
        self._held = ""  # what may be the beginning of a stop

    def push(self, token: int) -> str:
        """Returns the text that may be shown now that a token has come."""
        text = self._cut(self._held + self._decoder.push(token))
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


class Choice:
    """One continuation of one prompt, on its way.

    Attributes:
      index: Its place among the choices of an answer.
      num_tokens: How many tokens its text so far took.
      finish_reason: Why it ended; ``None`` until then.
    """

    def __init__(
        self,
        index: int,
        engine: Engine,
        prompt: Sequence[int],
        text: StoppedText,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        end_tokens: Sequence[int],
    ):
        """Submits it; raises as ``Engine.submit``. Called in the server's loop."""
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._text = text
        self._progress = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before it
                loop.call_soon_threadsafe(self._progress.set)

        self._request = engine.submit(
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            end_tokens=end_tokens,
            on_progress=tell,
        )

    def cancel(self) -> None:
        """Lets its slot go."""
        self._request.cancel()

    async def pieces(self) -> AsyncIterator[str]:
        """Yields text as it comes, none of it empty.

        Raises:
          ApiError: The model's logits were NaN, or the server stops before its end.
        """
        place = 0
        while self.finish_reason is None:
            await self._progress.wait()
            self._progress.clear()
            is_done = self._request.is_done  # before the tokens: none comes after it
            tokens = self._request.tokens[place:]
            place += len(tokens)
            piece = self._read(tokens)
            if self.finish_reason is None and is_done:
                piece += self._text.finish()
                self.finish_reason = self._reason()
            if piece:
                yield piece

    def _read(self, tokens: Sequence[int]) -> str:
        piece = ""
        for token in tokens:
            piece += self._text.push(token)
            self.num_tokens += 1
            if self._text.is_stopped:
                self.finish_reason = "stop"
                self.cancel()
                break
        return piece

    def _reason(self) -> FinishReason:
        try:
            reason = self._request.result().finish_reason
        except FloatingPointError as error:
            raise ApiError(500, str(error)) from None
        if reason == "cancelled":
            raise stopping()
        is_whole = reason == "length" and not self._text.is_stopped
        return "length" if is_whole else "stop"


async def merged(
    choices: Sequence[Choice],
) -> AsyncIterator[tuple[Choice, str | None]]:
    """Yields pieces of several choices as they come, and ``None`` at the end of each.

    Args:
      choices: All of an answer.

    Raises:
      ApiError: As ``Choice.pieces`` of any.
    """
    queue: asyncio.Queue[tuple[Choice, str | None] | Exception] = asyncio.Queue()

    async def follow(choice: Choice) -> None:
        try:
            async for piece in choice.pieces():
                queue.put_nowait((choice, piece))
            queue.put_nowait((choice, None))
        except Exception as error:  # raised below, to whoever reads
            queue.put_nowait(error)

    tasks = [asyncio.create_task(follow(choice)) for choice in choices]
    try:
        left = len(choices)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1] is None
            yield item
    finally:
        for task in tasks:
            task.cancel()
