"""A prompt on its way through an engine, and what became of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.config import DecoderConfig
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.sampling import Sampling

MAX_BIASES = 64  # tokens that a request's logit_bias may hold

RequestReason = Literal["end", "length", "cancelled"]


@dataclasses.dataclass(frozen=True)
class RequestResult:
    """What a request came to.

    Attributes:
      tokens: The new tokens; the prompt and the end token are not among them.
      finish_reason: ``"end"`` where an end token came, ``"length"`` where
        ``max_new_tokens`` did, ``"cancelled"`` where someone did not wait for either.

    Example:
      >>> RequestResult([5, 6], "length").tokens
      [5, 6]
    """

    tokens: list[int]
    finish_reason: RequestReason


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
        on_progress: Callable[[], None] | None,
    ):
        """Takes what was checked; ``Engine.submit`` is the way to make one."""
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.seed = seed
        self.end_tokens = end_tokens
        self._ends = frozenset(end_tokens)
        self._runner = runner
        self._on_progress = on_progress
        self._tokens: list[int] = []
        self._reason: RequestReason = "cancelled"  # what counts where there is no error
        self._error: BaseException | None = None
        self._done = False
        self._changed = threading.Condition()

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return list(self._tokens)

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
        return RequestResult(self.tokens, self._reason)

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

    def _take(self, new: Sequence[int]) -> bool:
        """Takes tokens as they were chosen; returns whether it is done with them."""
        for token in new:
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


def checked_request(
    runner: Runner,
    config: DecoderConfig,
    max_length: int,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None,
    seed: int | None,
    end_tokens: Sequence[int],
    on_progress: Callable[[], None] | None,
) -> Request:
    """Returns a request, or says at the door what is wrong with it.

    Args:
      runner: The engine.
      config: Of its model.
      max_length: How many tokens a slot has room for.
      prompt: As ``Engine.submit``; likewise the rest.
      max_new_tokens: See there.
      sampling: See there.
      seed: See there.
      end_tokens: See there.
      on_progress: See there.

    Raises:
      ValueError: As ``Engine.submit``.
    """
    most = whole_number("max_new_tokens", max_new_tokens)
    sampling = Sampling(temperature=0.0) if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling must be a Sampling or None, got {sampling!r}")
    Dials.all_on([sampling], config.vocab_size, MAX_BIASES)  # refuses a wrong bias
    if seed is not None:
        seed = whole_number("seed", seed, 0, 2**32 - 1)
    elif not sampling.is_greedy:
        raise ValueError(
            "seed must be given where temperature is above 0, got temperature = "
            f"{sampling.temperature}"
        )
    if isinstance(prompt, str) or not hasattr(prompt, "__len__"):
        raise ValueError(f"prompt must be a list of token ids, got {prompt!r}")
    if not len(prompt):
        raise ValueError("prompt must hold at least one token id, and is empty")
    ids = _checked_ids("prompt", prompt, config.vocab_size)
    if len(ids) + most > max_length:
        raise ValueError(
            f"prompt has {len(ids)} tokens and max_new_tokens is {most}: together more "
            f"than the engine's max_length = {max_length}"
        )
    return Request(
        runner,
        ids,
        max_new_tokens=most,
        sampling=sampling,
        seed=seed,
        end_tokens=_checked_ids("end_tokens", end_tokens, config.vocab_size),
        on_progress=on_progress,
    )


def _checked_ids(name: str, ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    for place, token in enumerate(ids):
        whole = isinstance(token, int | np.integer)
        if not whole or not 0 <= token < vocab_size:
            raise ValueError(
                f"{name} must hold ids from 0 to {vocab_size - 1} (vocab_size = "
                f"{vocab_size}), got {token} at {place}"
            )
    return tuple(int(token) for token in ids)
