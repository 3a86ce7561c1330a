"""Tokens chosen per second, one stream of text, beside the limit and others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haiku_mqa.bench.bandwidth import load_remarks, read_bandwidth
from haiku_mqa.bench.decode import Ours, Program
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.remote import Peers, parameters
from haiku_mqa.bench.standing import Standing
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.model import Model, Params
from haiku_mqa.quantization import quantize_params

COLUMNS = (
    "program",
    "weights",
    "prefill tokens/s",
    "ours is",
    "decode tokens/s",
    "ours is",
    "of the limit",
    "same tokens",
)


def run_decode(
    model: Model,
    params: Params,
    *,
    name: str = "a model",
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    torch_python: str | None = None,
    gguf: Path | None = None,
    progress: bool = False,
    measure_bandwidth: Callable[[], float] = read_bandwidth,
) -> Findings:
    """Has each program in turn continue a prompt of random tokens, greedily.

    This package runs twice: with matrices in int8, and with weights as they are.

    Args:
      model: The model.
      params: Its weights.
      name: What it is called.
      prompt_tokens: Length of the prompt.
      new_tokens: How many tokens each run chooses, >= 2.
      repeats: How many runs each median is of.
      seed: Of the prompt.
      torch_python: A Python that has the peers; this one if ``None``.
      gguf: The model's file, for llama.cpp.
      progress: Whether a bar is shown on stderr.
      measure_bandwidth: Called once a repeat.

    Returns:
      The table, and every figure.
    """
    remarks = load_remarks()
    draw = np.random.default_rng(seed)
    prompt = draw.integers(0, model.config.vocab_size, prompt_tokens).tolist()
    with Peers(torch_python) as peers:
        peers.add_transformers(model, params)
        peers.add_llama_cpp(gguf, context=prompt_tokens + new_tokens)
        programs: list[Program] = [
            Ours(model, quantize_params(model, params)),
            Ours(model, params),
            *peers.programs,
        ]
        turns = take_turns(
            programs,
            [prompt],
            lambda program, prompt: program.run(prompt, new_tokens),
            repeats=repeats,
            measure=measure_bandwidth,
            progress=progress,
        )
    standings = [
        Standing.of(program, runs, prompt_tokens)
        for program, runs in zip(programs, turns.runs[0], strict=True)
    ]
    bandwidth = statistics.median(turns.measured)
    results = [_result(standing, standings, bandwidth) for standing in standings]
    limits = {each["dtype"]: each["limit_tokens_per_second"] for each in results}
    settings = {
        "model": name,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    return Findings(
        title=f"{name}: {parameters(params):,} parameters; {prompt_tokens} prompt "
        f"tokens, {new_tokens} new tokens, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(_rows(results, new_tokens)),
        notes=(
            f"memory is read at {bandwidth / 1e9:.1f} GB/s, measured in the same run, "
            "so the limit is "
            + ", ".join(f"{dtype} {limit:.1f}" for dtype, limit in limits.items())
            + " tokens/s",
            *peers.absent,
            *remarks,
        ),
        data={
            "command": command("decode", settings),
            "settings": settings,
            "model": name,
            "parameters": parameters(params),
            "bandwidth_bytes_per_second": bandwidth,
            "bandwidth_runs": turns.measured,
            "programs": results,
        },
    )


def _result(
    standing: Standing, standings: Sequence[Standing], bandwidth: float
) -> dict[str, Any]:
    ours = standings[0]
    limit = bandwidth / standing.weight_bytes_per_token
    return {
        "name": standing.name,
        "dtype": standing.dtype,
        "weight_bytes_per_token": standing.weight_bytes_per_token,
        "prefill_tokens_per_second": standing.prefill,
        "decode_tokens_per_second": standing.decode,
        "prefill_runs": list(standing.prefill_tokens_per_second),
        "decode_runs": list(standing.decode_tokens_per_second),
        "limit_tokens_per_second": limit,
        "fraction_of_limit": standing.decode / limit,
        "prefill_ratio": ours.prefill / standing.prefill,
        "decode_ratio": ours.decode / standing.decode,
        "same_tokens": _same_tokens(standing, standings),
    }


def _same_tokens(standing: Standing, standings: Sequence[Standing]) -> int:
    """Returns how many leading tokens are those of our weights that are not rounded."""
    exact = next(each for each in standings if each.dtype != "int8")
    pairs = zip(exact.tokens, standing.tokens, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(exact.tokens))


def _rows(
    results: Sequence[dict[str, Any]], new_tokens: int
) -> Iterator[tuple[str, ...]]:
    for result in results:
        is_peer = result is not results[0]
        yield (
            result["name"],
            result["dtype"],
            f"{result['prefill_tokens_per_second']:.1f}",
            f"{result['prefill_ratio']:.2f}x" if is_peer else "",
            f"{result['decode_tokens_per_second']:.1f}",
            f"{result['decode_ratio']:.2f}x" if is_peer else "",
            f"{result['fraction_of_limit']:.0%}",
            f"{result['same_tokens']}/{new_tokens}" if is_peer else "",
        )
