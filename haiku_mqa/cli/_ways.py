"""The ways in which ``haiku-mqa generate`` writes what follows a prompt."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _continue
from haiku_mqa.cli._screen import counted, table
from haiku_mqa.streaming import StoppedText, text_decoder

if TYPE_CHECKING:
    import jax

    from haiku_mqa.generation import Draft, Prefix, PromptLookup, Sampling
    from haiku_mqa.zoo.loading import LoadedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be written.

    Attributes:
      loaded: The model.
      shown: What each text begins with on the screen.
      ids: The tokens of the prompt.
      new_tokens: How many come at most.
      sampling: How they are chosen.
      rng: PRNG key; ``None`` where the choice is greedy.
      stop: Texts before which it ends.
      logprobs: Whether tokens are listed with what the model held of them.
      prefix: What comes before ``ids``, and was read.
      form: ``cache_dtype`` and ``ring_cache``, as the library takes them.
    """

    loaded: LoadedModel
    shown: str
    ids: list[int]
    new_tokens: int
    sampling: Sampling
    rng: jax.Array | None
    stop: tuple[str, ...]
    logprobs: bool
    prefix: Prefix | None
    form: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """What every way of the library takes."""
        return {
            "max_new_tokens": self.new_tokens,
            "end_tokens": tuple(getattr(self.loaded.tokenizer, "end_tokens", ())),
            "prefix": self.prefix,
            **self.form,
        }


class Clock:
    """When tokens came, counted from when the model was loaded."""

    def __init__(self) -> None:
        """Begins to count."""
        self._start = time.perf_counter()
        self._counts: list[int] = []
        self._times: list[float] = []

    def tick(self, count: int) -> None:
        """Notes that so many tokens have come at once."""
        if count:
            self._counts.append(count)
            self._times.append(time.perf_counter())

    @property
    def first(self) -> str:
        """How many tokens came, and when the first did."""
        first = (self._times[0] if self._times else time.perf_counter()) - self._start
        tokens = counted(sum(self._counts), "new token")
        return f"{tokens} · {first:.1f} s to first token"

    @property
    def figures(self) -> str:
        """How many tokens came, when the first did, and how fast the others."""
        if len(self._times) <= 2:
            return self.first
        # The second waits for the decode program to be compiled.
        rate = sum(self._counts[2:]) / (self._times[-1] - self._times[1])
        return f"{self.first} · {rate:.1f} tokens/s"


def write_one(task: Task) -> str:
    """Writes one text as it is chosen, beyond the context where that is full.

    Args:
      task: What is to be written.

    Returns:
      The figures.
    """
    text = StoppedText(text_decoder(task.loaded.tokenizer), task.stop)
    clock, tokens, logprobs = Clock(), [], []
    _show(task.shown)
    try:
        for step in _continue.steps(
            task.loaded.model,
            task.loaded.params,
            task.ids,
            new_tokens=task.new_tokens,
            sampling=task.sampling,
            rng=task.rng,
            end_tokens=task.options["end_tokens"],
            logprobs=task.logprobs,
            prefix=task.prefix,
            **task.form,
        ):
            [new] = step.tokens
            clock.tick(len(new))
            tokens += new
            logprobs += step.logprobs[0] if step.logprobs else []
            _show("".join(map(text.push, new)))
            if text.is_stopped:
                break
        _show("" if text.is_stopped else text.finish())
    finally:
        _show("\n")  # whatever comes next begins a line
    if task.logprobs:
        _show(f"\n{_likelihoods(task, tokens, logprobs)}\n\n")
    return f"{clock.figures}{_mean(logprobs)}"


def write_samples(task: Task, num_samples: int) -> str:
    """Writes several texts, once all of them are there.

    Args:
      task: What is to be written.
      num_samples: How many.

    Returns:
      The figures.
    """
    from haiku_mqa.generation import stream

    clock = Clock()
    tokens: list[list[int]] = [[] for _ in range(num_samples)]
    logprobs: list[list[float]] = [[] for _ in range(num_samples)]
    for step in stream(
        task.loaded.model,
        task.loaded.params,
        [task.ids],
        sampling=task.sampling,
        rng=task.rng,
        num_samples=num_samples,
        stop=task.stop,
        tokenizer=task.loaded.tokenizer,
        logprobs=task.logprobs,
        **task.options,
    ):
        clock.tick(sum(map(len, step.tokens)))
        for row, new in enumerate(step.tokens):
            tokens[row] += new
            logprobs[row] += step.logprobs[row] if step.logprobs else []
    for row, mine in enumerate(tokens):
        _show(f"--- sample {row + 1} of {num_samples}{_mean(logprobs[row])} ---\n")
        _show(f"{task.shown}{_text(task, mine)}\n\n")
        if task.logprobs:
            _show(f"{_likelihoods(task, mine, logprobs[row])}\n\n")
    return f"{counted(num_samples, 'sample')} · {clock.figures}"


def write_beams(task: Task, num_beams: int, length_penalty: float) -> str:
    """Writes the likeliest texts, best first.

    Args:
      task: What is to be written.
      num_beams: How many are searched.
      length_penalty: As ``beam_search``.

    Returns:
      The figures.
    """
    from haiku_mqa.generation import beam_search

    start = time.perf_counter()
    found = beam_search(
        task.loaded.model,
        task.loaded.params,
        [task.ids],
        num_beams=num_beams,
        length_penalty=length_penalty,
        **task.options,
    )
    seconds = time.perf_counter() - start
    [texts], [scores] = found.tokens, found.scores
    for place, (tokens, score) in enumerate(zip(texts, scores, strict=True), start=1):
        _show(f"--- {place} of {len(texts)} · score {score:.3f} ---\n")
        _show(f"{task.shown}{_text(task, tokens)}\n\n")
    longest = max(map(len, texts), default=0)
    return (
        f"{counted(num_beams, 'beam')} of up to {counted(longest, 'new token')} · "
        f"{seconds:.1f} s"
    )


def write_guessed(task: Task, proposer: Draft | PromptLookup) -> str:
    """Writes one text of which a proposer guesses what it can.

    Args:
      task: What is to be written; in no ring.
      proposer: Who guesses.

    Returns:
      The figures.
    """
    from haiku_mqa.generation import speculate

    text, clock = text_decoder(task.loaded.tokenizer), Clock()
    options = {k: v for k, v in task.options.items() if k != "ring_cache"}
    before = len(task.prefix.tokens) if task.prefix else 0
    length = before + len(task.ids) + task.new_tokens
    proposer.check(task.loaded.model, length)  # before anything is written

    def show(row: int, token: int) -> None:
        clock.tick(1)
        _show(text.push(token))

    _show(task.shown)
    try:
        result = speculate(
            task.loaded.model,
            task.loaded.params,
            [task.ids],
            proposer=proposer,
            sampling=task.sampling,
            rng=task.rng,
            on_token=show,
            **options,
        )
        _show(text.finish())
    finally:
        _show("\n")  # whatever comes next begins a line
    # The first token comes of reading the prompt.
    return (
        f"{clock.first} · {counted(result.calls + 1, 'call')} of the model · "
        f"{result.accepted:,} of {result.proposed:,} guesses stood "
        f"({result.acceptance:.0%})"
    )


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _text(task: Task, tokens: Sequence[int]) -> str:
    text = StoppedText(text_decoder(task.loaded.tokenizer), task.stop)
    shown = "".join(map(text.push, tokens))
    return shown if text.is_stopped else shown + text.finish()


def _likelihoods(task: Task, tokens: Iterable[int], logprobs: Iterable[float]) -> str:
    """Returns a table of tokens, each with what the model held of it."""
    decode = task.loaded.tokenizer.decode  # type: ignore[union-attr]
    rows = [
        [repr(decode([token])), f"{logprob:.3f}", f"{math.exp(logprob):.1%}"]
        for token, logprob in zip(tokens, logprobs, strict=True)
    ]
    head = ("token", "log-probability", "probability")
    return table(head, rows, head[1:])


def _mean(logprobs: Sequence[float]) -> str:
    if not logprobs:
        return ""
    return f" · mean log-probability {sum(logprobs) / len(logprobs):.3f}"
