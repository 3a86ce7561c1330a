"""Requests of many lengths that come at once: an engine, and one after another."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from haiku_mqa.bench.bandwidth import load_remarks
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.generation import Engine, generate
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
        Load(
            tuple(draw.integers(0, vocab_size, length(prompt_tokens)).tolist()),
            length(new_tokens),
        )
        for _ in range(requests)
    ]


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
    requests: int = 32,
    slots: int = 16,
    prompt_tokens: int = 32,
    new_tokens: int = 128,
    repeats: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> Findings:
    """Serves one load by an engine and request by request, greedily, in turns.

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
    load = draw_load(
        model.config.vocab_size,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
    )
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
    total = (1 + repeats) * len(programs)
    with progress_bar(total, "run", is_shown=progress) as bar:
        for repeat in range(1 + repeats):
            for program, serve in programs.items():
                bar.set_description(program)
                served = serve(load)
                if repeat:  # the first compiles, and is not timed
                    runs[program].append(served)
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
        rows=tuple(_row(result, requests) for result in results),
        notes=(
            "first and last token: seconds from the arrival of all requests to a "
            "request's own, the median over requests",
            "same tokens: requests that got the tokens of the first program",
            *remarks,
        ),
        data={
            "command": command("engine", settings),
            "settings": settings,
            "programs": results,
        },
    )


def _results(runs: dict[str, list[Served]]) -> list[dict[str, Any]]:
    baseline = next(iter(runs.values()))
    seconds = statistics.median(served.seconds for served in baseline)
    results = []
    for program, each in runs.items():
        mine = statistics.median(served.seconds for served in each)
        same = zip(each[0].tokens, baseline[0].tokens, strict=True)
        results.append(
            {
                "name": program,
                "seconds_runs": [served.seconds for served in each],
                "seconds": mine,
                "new_tokens_per_second": sum(map(len, each[0].tokens)) / mine,
                "ratio": seconds / mine,
                "first_token_seconds": _median_of(s.first for s in each),
                "last_token_seconds": _median_of(s.last for s in each),
                "same_tokens": sum(ours == theirs for ours, theirs in same),
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
