"""Requests of many lengths that come at once: an engine, and one after another."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from haiku_mqa.bench.bandwidth import load_remarks
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.generation import Engine, generate
from haiku_mqa.generation.generate import bucket
from haiku_mqa.model import Model, Params

COLUMNS = (
    "program",
    "seconds",
    "new tokens/s",
    "of one by one",
    "first token s",
    "last token s",
    "same tokens",
)


@dataclasses.dataclass(frozen=True)
class Load:
    """One request of a load.

    Attributes:
      prompt: Its token ids.
      new_tokens: How many it gets.
    """

    prompt: tuple[int, ...]
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class Served:
    """How a whole load was served, in seconds from its beginning.

    Attributes:
      seconds: When the last request ended.
      first: When each had its first token.
      last: When each had its last.
      tokens: The new tokens of each.
    """

    seconds: float
    first: tuple[float, ...]
    last: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]


Program = Callable[[Sequence[Load]], Served]


class Redrawn:
    """A load whose prompts are others each time, of the lengths that they had.

    Else what an engine has read of one run would serve it in the next.

    Attributes:
      first: The load as it was.

    Example:
      >>> loads = Redrawn([Load((1, 2), 3)], vocab_size=50, seed=0)
      >>> [[len(each.prompt), each.new_tokens] for each in loads.next()]
      [[2, 3]]
    """

    def __init__(self, load: Sequence[Load], *, vocab_size: int, seed: int):
        """Begins with a load.

        Args:
          load: Whose lengths count.
          vocab_size: V.
          seed: Of all that is drawn.
        """
        self.first = tuple(load)
        self._vocab_size = vocab_size
        self._draw = np.random.default_rng((seed, 1))  # not what drew the load

    def next(self) -> list[Load]:
        """Returns the load with prompts of other tokens."""
        return [
            Load(
                _tokens(self._draw, self._vocab_size, len(each.prompt)), each.new_tokens
            )
            for each in self.first
        ]


def draw_load(
    vocab_size: int, *, requests: int, prompt_tokens: int, new_tokens: int, seed: int
) -> list[Load]:
    """Returns requests of random tokens, from half as long to as long as is said.

    Args:
      vocab_size: V.
      requests: How many.
      prompt_tokens: Of the longest prompt.
      new_tokens: Of the longest continuation.
      seed: Of all that is drawn.

    Example:
      >>> load = draw_load(50, requests=3, prompt_tokens=8, new_tokens=4, seed=0)
      >>> all(4 <= len(each.prompt) <= 8 for each in load)
      True
    """
    draw = np.random.default_rng(seed)

    def length(longest: int) -> int:
        return int(draw.integers((longest + 1) // 2, longest + 1))

    return [
        Load(_tokens(draw, vocab_size, length(prompt_tokens)), length(new_tokens))
        for _ in range(requests)
    ]


def _tokens(draw: np.random.Generator, vocab_size: int, length: int) -> tuple[int, ...]:
    return tuple(draw.integers(0, vocab_size, length).tolist())


def compile_one_by_one(model: Model, params: Params, load: Sequence[Load]) -> None:
    """Compiles what ``generate`` needs for each request of a load.

    Args:
      model: The model.
      params: Its weights.
      load: The requests.
    """
    of_a_shape = {
        (bucket(len(each.prompt)), bucket(len(each.prompt) + each.new_tokens)): each
        for each in load
    }
    for each in of_a_shape.values():
        generate(model, params, [each.prompt], max_new_tokens=each.new_tokens)


def one_by_one(model: Model, params: Params) -> Program:
    """Returns what gives each request a call of ``generate`` of its own, in turn."""

    def serve(load: Sequence[Load]) -> Served:
        start = time.perf_counter()
        tokens, last = [], []
        for each in load:
            result = generate(
                model, params, [each.prompt], max_new_tokens=each.new_tokens
            )
            tokens.append(tuple(result.tokens[0]))
            last.append(time.perf_counter() - start)
        # The call gives all tokens of a request at its end.
        return Served(last[-1], tuple(last), tuple(last), tuple(tokens))

    return serve


def by_engine(engine: Engine) -> Program:
    """Returns what submits all requests to an engine at once, and makes its turns."""

    def serve(load: Sequence[Load]) -> Served:
        start = time.perf_counter()
        times: list[list[float]] = [[] for _ in load]
        requests = [
            engine.submit(
                each.prompt,
                max_new_tokens=each.new_tokens,
                on_progress=lambda mine=mine: mine.append(time.perf_counter() - start),
            )
            for each, mine in zip(load, times, strict=True)
        ]
        engine.run()
        return Served(
            time.perf_counter() - start,
            tuple(mine[0] for mine in times),
            tuple(mine[-1] for mine in times),
            tuple(tuple(request.tokens) for request in requests),
        )

    return serve


def run_engine(
    model: Model,
    params: Params,
    *,
    name: str = "a model",
    requests: int = 24,
    slots: int = 16,
    prompt_tokens: int = 16,
    new_tokens: int = 48,
    repeats: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> Findings:
    """Serves one load by an engine and request by request, greedily, in turns.

    Both are compiled before anything is timed. Every repeat has prompts of its own,
    the same for both.

    Args:
      model: The model.
      params: Its weights.
      name: What it is called.
      requests: How many come at once.
      slots: Of the engine.
      prompt_tokens: Of the longest prompt; the shortest may be half as long.
      new_tokens: Of the longest continuation; likewise.
      repeats: How many runs each median is of.
      seed: Of the requests.
      progress: Whether a bar is shown on stderr.

    Returns:
      The table, and every figure.
    """
    vocab_size = model.config.vocab_size
    load = draw_load(
        vocab_size,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
    )
    loads = Redrawn(load, vocab_size=vocab_size, seed=seed)
    engine = Engine(
        model,
        params,
        slots=slots,
        max_length=prompt_tokens + new_tokens,
        max_waiting=requests,
    )
    programs: dict[str, Program] = {
        "one by one": one_by_one(model, params),
        f"engine, {slots} slots": by_engine(engine),
    }
    remarks = load_remarks()
    runs: dict[str, list[Served]] = {program: [] for program in programs}
    steps = (1 + repeats) * len(programs)
    with progress_bar(steps, "run", is_shown=progress) as bar:
        bar.set_description("compiling")
        # NumPy weights would be copied to the device at every call.
        params = jax.device_put(params)
        compile_one_by_one(model, params, load)
        bar.update()
        engine.warm_up()
        bar.update()
        for _ in range(repeats):
            load = loads.next()
            for program, serve in programs.items():
                bar.set_description(program)
                runs[program].append(serve(load))
                bar.update()
    results = _results(runs)
    settings = {
        "model": name,
        "requests": requests,
        "slots": slots,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    return Findings(
        title=f"{name}: {requests} requests at once, of up to {prompt_tokens} prompt "
        f"tokens and {new_tokens} new ones, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(_row(result, requests * repeats) for result in results),
        notes=(
            "first and last token: seconds from the arrival of all requests to a "
            "request's own, the median over requests",
            "same tokens: requests, of all runs, that got those of the first program",
            *remarks,
        ),
        data={
            "command": command("engine", settings),
            "settings": settings,
            "model": name,
            "programs": results,
        },
    )


def _results(runs: dict[str, list[Served]]) -> list[dict[str, Any]]:
    baseline = next(iter(runs.values()))
    seconds = statistics.median(served.seconds for served in baseline)
    results = []
    for program, each in runs.items():
        mine = statistics.median(served.seconds for served in each)
        same = [
            ours == theirs
            for served, first in zip(each, baseline, strict=True)
            for ours, theirs in zip(served.tokens, first.tokens, strict=True)
        ]
        typical = min(each, key=lambda served: abs(served.seconds - mine))
        results.append(
            {
                "name": program,
                "seconds_runs": [served.seconds for served in each],
                "seconds": mine,
                "new_tokens_per_second": sum(map(len, each[0].tokens)) / mine,
                "ratio": seconds / mine,
                "ratio_runs": [
                    theirs.seconds / ours.seconds
                    for ours, theirs in zip(each, baseline, strict=True)
                ],
                "first_token_seconds": _median_of(s.first for s in each),
                "last_token_seconds": _median_of(s.last for s in each),
                "first_token_seconds_of_each": sorted(typical.first),
                "last_token_seconds_of_each": sorted(typical.last),
                "same_tokens": sum(same),
            }
        )
    return results


def _median_of(times: Any) -> float:
    """Returns the median over runs of each run's median over requests."""
    return statistics.median(statistics.median(each) for each in times)


def _row(result: dict[str, Any], requests: int) -> tuple[str, ...]:
    return (
        result["name"],
        f"{result['seconds']:.2f}",
        f"{result['new_tokens_per_second']:.1f}",
        f"{result['ratio']:.2f}x",
        f"{result['first_token_seconds']:.2f}",
        f"{result['last_token_seconds']:.2f}",
        f"{result['same_tokens']}/{requests}",
    )
