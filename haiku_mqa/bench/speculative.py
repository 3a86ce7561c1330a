"""Tokens that are guessed and read together, beside tokens chosen one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from haiku_mqa.bench.bandwidth import load_remarks
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.generation import (
    Draft,
    PromptLookup,
    SpeculativeResult,
    generate,
    speculate,
)
from haiku_mqa.model import Model, Params

COLUMNS = ("decoding", "tokens/s", "beside plain", "accepted", "tokens a call", "same")
_Output = tuple[list[int], SpeculativeResult | None]


def run_speculative(
    model: Model,
    params: Params,
    prompt: Sequence[int],
    *,
    lookup: PromptLookup | None = None,
    draft: Draft | None = None,
    new_tokens: int = 64,
    repeats: int = 5,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Findings:
    """Continues a prompt greedily in each way in turn: one stream of text, batch 1.

    Each way is run once before, untimed: that compiles it.

    Args:
      model: The model.
      params: Its parameters.
      prompt: Token ids.
      lookup: How the text proposes; as ``PromptLookup()`` if ``None``.
      draft: The smaller model that proposes; none if ``None``.
      new_tokens: How many tokens each run chooses, >= 2.
      repeats: How many runs each median is of.
      settings: What the command line was, by its options.
      progress: Whether a bar is shown on stderr.
      clock: Returns seconds.

    Returns:
      The table, and every figure.

    Raises:
      ValueError: The draft does not fit the model, or the prompt leaves no room.
    """
    if draft is not None:
        draft.check(model, len(prompt) + new_tokens)
    remarks = load_remarks()
    proposers: dict[str, Draft | PromptLookup | None] = {
        "plain": None,
        "prompt lookup": lookup or PromptLookup(),
    }
    if draft is not None:
        proposers["draft"] = draft
    ways = [
        _Way(name, _continuing(model, params, list(prompt), proposer, new_tokens))
        for name, proposer in proposers.items()
    ]

    def timed(way: _Way, _: None) -> tuple[float, _Output]:
        start = clock()
        output = way.run()
        return clock() - start, output

    turns = take_turns(
        ways,
        [None],
        timed,
        repeats=repeats,
        measure=lambda: None,
        progress=progress,
    )
    outputs = [output for _, output in turns.first[0]]
    figures = [
        _figures(way.name, [seconds for seconds, _ in runs], *output, outputs[0][0])
        for way, runs, output in zip(ways, turns.runs[0], outputs, strict=True)
    ]
    return Findings(
        title=f"{len(prompt)} prompt tokens, {new_tokens} new tokens, greedy, one "
        f"stream of text; medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(_row(each, figures[0]) for each in figures),
        notes=(
            "whole calls are timed, the reading of the prompt included",
            "accepted is the share of the proposed tokens that the model would have "
            "chosen too, and same how many leading tokens are those of plain decoding",
            "how much is accepted depends on the text: measure with your own",
            *remarks,
        ),
        data={
            "command": command("speculative", settings or {}),
            "settings": dict(settings or {}),
            "prompt_tokens": len(prompt),
            "new_tokens": new_tokens,
            "repeats": repeats,
            "ways": figures,
        },
    )


class _Way(NamedTuple):
    name: str
    run: Callable[[], _Output]


def _continuing(
    model: Model,
    params: Params,
    prompt: list[int],
    proposer: Draft | PromptLookup | None,
    new_tokens: int,
) -> Callable[[], _Output]:
    # On the device before the clock runs.
    params = jax.device_put(params)

    def plain() -> tuple[list[int], None]:
        result = generate(model, params, [prompt], max_new_tokens=new_tokens)
        return result.tokens[0], None

    if proposer is None:
        return plain
    guesser = jax.device_put(proposer)

    def guessed() -> tuple[list[int], SpeculativeResult]:
        result = speculate(
            model, params, [prompt], proposer=guesser, max_new_tokens=new_tokens
        )
        return result.tokens[0], result

    return guessed


def _figures(
    name: str,
    seconds: Sequence[float],
    tokens: Sequence[int],
    result: SpeculativeResult | None,
    plain: Sequence[int],
) -> dict[str, Any]:
    same = next(
        (i for i, (a, b) in enumerate(zip(tokens, plain, strict=True)) if a != b),
        len(plain),
    )
    figures = {
        "name": name,
        "tokens_per_second": len(tokens) / statistics.median(seconds),
        "tokens_per_second_runs": [len(tokens) / each for each in seconds],
        "same_tokens": same,
    }
    if result is not None:
        figures |= {
            "proposed": result.proposed,
            "accepted": result.accepted,
            "acceptance": result.acceptance,
            "calls": result.calls,
            # The first token is chosen where the prompt is read.
            "tokens_per_call": (len(tokens) - 1) / result.calls,
        }
    return figures


def _row(figures: Mapping[str, Any], plain: Mapping[str, Any]) -> tuple[str, ...]:
    if figures is plain:
        return (figures["name"], f"{figures['tokens_per_second']:.1f}", "", "", "", "")
    ratio = figures["tokens_per_second"] / plain["tokens_per_second"]
    return (
        figures["name"],
        f"{figures['tokens_per_second']:.1f}",
        f"{ratio:.2f}x",
        f"{figures['acceptance']:.0%}",
        f"{figures['tokens_per_call']:.2f}",
        f"{figures['same_tokens']}/{plain['same_tokens']}",
    )
