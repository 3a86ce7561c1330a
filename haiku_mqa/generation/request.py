"""A prompt on its way through an engine, and what became of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from haiku_mqa.generation.sampling import Sampling

MAX_BIASES = 64  # tokens that a request's logit_bias may hold
MOST_TOLD = 20  # of the likeliest tokens at a place, as OpenAI's API has it

RequestReason = Literal["end", "length", "cancelled"]
Alternatives = tuple[tuple[int, float], ...]  # tokens and their log-probabilities


class NewToken(NamedTuple):
    """A token as it was chosen.

    Attributes:
      token: Its id; -1 where the logits were NaN.
      logprob: Its log-probability, if the request asked.
      likeliest: The likeliest tokens at its place, as many as were asked for.
    """

    token: int
    logprob: float = 0.0
    likeliest: Alternatives = ()


@dataclasses.dataclass(frozen=True)
class RequestResult:
    """What a request came to.

    Attributes:
      tokens: The new tokens; the prompt and the end token are not among them.
      finish_reason: ``"end"`` where an end token came, ``"length"`` where
        ``max_new_tokens`` did, ``"cancelled"`` where someone did not wait for either.
      logprobs: The log-probability of each token in the model's own distribution,
        whatever the sampling; ``None`` where nobody asked.
      top_logprobs: For each token the likeliest at its place and their
        log-probabilities, the likeliest first; ``None`` where nobody asked.

    Example:
      >>> RequestResult([5, 6], "length").tokens
      [5, 6]
    """

    tokens: list[int]
    finish_reason: RequestReason
    logprobs: list[float] | None = None
    top_logprobs: list[Alternatives] | None = None


class Runner(Protocol):
    """What a request asks of its engine."""

    def cancel(self, request: Request, /) -> bool:
        """Cancels a request, if it is open."""
        ...

    def help_along(self) -> bool:
        """Makes a turn where no thread does, and returns whether it did."""
        ...


class Request:
    """A prompt that an engine continues; ``Engine.submit`` makes it.

    Iterating over it gives its new tokens as they are chosen, from the first, however
    often and in whichever threads. Who waits for a token, here or in ``result``,
    makes the engine's turns where no background thread does.

    Attributes:
      prompt: Its token ids.
      max_new_tokens: How many it gets at most.
      sampling: How they are chosen.
      seed: Of ``jax.random.key``; ``None`` where the choice is greedy.
      end_tokens: It ends where one of these is chosen.
      with_logprobs: Whether it is told how likely its tokens are.
      num_alternatives: How many of the likeliest tokens it is told beside each.
      num_reused: How many tokens of its prompt were known from another request, and
        not read anew; 0 until reading begins.

    Example:
      >>> import jax
      >>> from haiku_mqa import DecoderConfig, build
      >>> from haiku_mqa.generation import Engine
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> engine = Engine(model, model.init(jax.random.key(0)), max_length=16)
      >>> request = engine.submit([1, 2, 3], max_new_tokens=4)
      >>> len(list(request)), request.is_done, request.result().finish_reason
      (4, True, 'length')
    """

    def __init__(
        self,
        runner: Runner,
        prompt: tuple[int, ...],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int | None,
        end_tokens: tuple[int, ...],
        logprobs: bool,
        top_logprobs: int,
        on_progress: Callable[[], None] | None,
    ):
        """Takes what was checked; ``Engine.submit`` is the way to make one."""
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.seed = seed
        self.end_tokens = end_tokens
        self.with_logprobs = logprobs
        self.num_alternatives = top_logprobs
        self.num_reused = 0
        self._ends = frozenset(end_tokens)
        self._runner = runner
        self._on_progress = on_progress
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._likeliest: list[Alternatives] = []
        self._reason: RequestReason = "cancelled"  # what counts where there is no error
        self._error: BaseException | None = None
        self._done = False
        self._changed = threading.Condition()

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return list(self._tokens)

    @property
    def logprobs(self) -> list[float] | None:
        """Of each token so far, or of more; ``None`` where nobody asked."""
        return list(self._logprobs) if self.with_logprobs else None

    @property
    def top_logprobs(self) -> list[Alternatives] | None:
        """At each token so far, or at more; ``None`` where nobody asked."""
        return list(self._likeliest) if self.num_alternatives else None

    @property
    def is_done(self) -> bool:
        """Whether it ended, in whatever way."""
        return self._done

    def cancel(self) -> bool:
        """Ends it as it is, and frees its slot at once.

        Returns:
          Whether it was still open; ``False`` where it had ended.
        """
        return self._runner.cancel(self)

    def result(self, timeout: float | None = None) -> RequestResult:
        """Waits for its end.

        Args:
          timeout: Seconds at most; ``None`` waits as long as it takes.

        Returns:
          All its tokens, and why there are no more.

        Raises:
          TimeoutError: It was still open after ``timeout`` seconds.
          FloatingPointError: The model's logits were NaN.
          Exception: Whatever stopped the engine in its work.
        """
        self._wait(lambda: self._done, timeout)
        if self._error is not None:
            raise self._error
        return RequestResult(
            self.tokens, self._reason, self.logprobs, self.top_logprobs
        )

    def __iter__(self) -> Iterator[int]:
        place, done = 0, False
        while not done:
            done, new = self._await_more(place)
            place += len(new)
            yield from new
        if self._error is not None:
            raise self._error

    def _await_more(self, place: int) -> tuple[bool, list[int]]:
        """Returns whether that is all, and the tokens from a place on."""
        self._wait(lambda: self._done or len(self._tokens) > place)
        done = self._done  # before the tokens, so that none comes after it
        return done, self._tokens[place:]

    def _wait(self, is_ready: Callable[[], bool], timeout: float | None = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while not is_ready():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the request was still open after {timeout} s")
            if self._runner.help_along():
                continue
            with self._changed:
                if not is_ready():
                    self._changed.wait(left)

    # --- Called by the engine ------------------------------------------------------

    def _take(self, new: Sequence[NewToken]) -> bool:
        """Takes tokens as they were chosen; returns whether it is done with them."""
        for token, logprob, likeliest in new:
            if token == -1:
                self._end(
                    "cancelled",
                    FloatingPointError(
                        "the logits of this request are NaN, or its bias leaves no "
                        "token in play; check the parameters with "
                        "haiku_mqa.checks.check_finite"
                    ),
                )
            elif token in self._ends:
                self._end("end")
            else:
                # The token last: who sees it finds the rest.
                self._logprobs.append(logprob)
                self._likeliest.append(likeliest)
                self._tokens.append(token)
                if len(self._tokens) == self.max_new_tokens:
                    self._end("length")
            if self._done:
                break
        return self._done

    def _end(self, reason: RequestReason, error: BaseException | None = None) -> None:
        self._reason, self._error, self._done = reason, error, True

    def _tell(self) -> None:
        """Wakes whoever waits. Never called under the engine's lock."""
        with self._changed:
            self._changed.notify_all()
        if self._on_progress is not None:
            self._on_progress()
