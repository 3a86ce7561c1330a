"""One answer as it comes out of the engine: text, piece by piece, up to its stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple

from haiku_mqa.generation import Engine, Sampling
from haiku_mqa.server.api_errors import ApiError, stopping
from haiku_mqa.server.likelihoods import Likelihood
from haiku_mqa.streaming import StoppedText

FinishReason = Literal["stop", "length"]


class Piece(NamedTuple):
    """Some text of a choice.

    Attributes:
      text: It; empty only at the end.
      tokens: What it was made of, where someone asked how likely that was.
    """

    text: str
    tokens: Sequence[Likelihood] = ()


def joined(pieces: Sequence[Piece]) -> Piece:
    """Returns pieces of a choice as one.

    Args:
      pieces: In their order.

    Example:
      >>> joined([Piece("to "), Piece("be")]).text
      'to be'
    """
    return Piece(
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.tokens],
    )


class Choice:
    """One continuation of one prompt, on its way.

    Attributes:
      index: Its place among the choices of an answer.
      sample: Its place among those of its prompt.
      with_logprobs: Whether it tells how likely its tokens were.
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
        logprobs: bool = False,
        top_logprobs: int = 0,
        sample: int = 0,
    ):
        """Submits it; raises as ``Engine.submit``. Called in the server's loop."""
        self.index = index
        self.sample = sample
        self.with_logprobs = logprobs
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._text = text
        self._shown = 0
        self._untold: list[Likelihood] = []
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
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            on_progress=tell,
        )

    @property
    def num_reused(self) -> int:
        """How many tokens of its prompt were known from another request."""
        return self._request.num_reused

    def cancel(self) -> None:
        """Lets its slot go."""
        self._request.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yields text as it comes, none of it empty but for tokens at the end.

        Raises:
          ApiError: The model's logits were NaN, or the server stops before its end.
        """
        place = 0
        while self.finish_reason is None:
            await self._progress.wait()
            self._progress.clear()
            is_done = self._request.is_done  # before the tokens: none comes after it
            tokens = self._request.tokens[place:]
            text = self._read(tokens, place)
            place += len(tokens)
            if self.finish_reason is None and is_done:
                text += self._text.finish()
                self.finish_reason = self._reason()
            self._shown += len(text)
            told = self._told()
            if text or told:
                yield Piece(text, told)

    def _read(self, tokens: Sequence[int], place: int) -> str:
        logprobs = self._request.logprobs
        ranked = self._request.top_logprobs
        text = ""
        for at, token in enumerate(tokens, place):
            if logprobs is not None:
                likeliest = ranked[at] if ranked is not None else ()
                self._untold.append(
                    Likelihood(token, logprobs[at], likeliest, self._text.length)
                )
            text += self._text.push(token)
            self.num_tokens += 1
            if self._text.is_stopped:
                self.finish_reason = "stop"
                self.cancel()
                break
        return text

    def _told(self) -> list[Likelihood]:
        """Returns the tokens whose text is shown by now, each once."""
        if self.finish_reason is not None and not self._text.is_stopped:
            told = self._untold
        else:  # of what is held back, or cut off, nothing is told
            told = [each for each in self._untold if each.offset < self._shown]
        self._untold = self._untold[len(told) :]
        return told

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
) -> AsyncIterator[tuple[Choice, Piece | None]]:
    """Yields pieces of several choices as they come, and ``None`` at the end of each.

    Args:
      choices: All of an answer.

    Raises:
      ApiError: As ``Choice.pieces`` of any.
    """
    queue: asyncio.Queue[tuple[Choice, Piece | None] | Exception] = asyncio.Queue()

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
