"""Prompts of several lengths read, beside others and the machine's matrix products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haiku_mqa.bench.bandwidth import load_remarks
from haiku_mqa.bench.decode import Ours, Program
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.matmul import matmul_rate
from haiku_mqa.bench.remote import Peers, parameters
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.model import Model, Params
from haiku_mqa.quantization import quantize_params

COLUMNS = (
    "prompt tokens",
    "program",
    "weights",
    "tokens/s",
    "ours is",
    "of the matrix products",
)


def prefill_flops(model: Model, params: Params, length: int) -> int:
    """Returns how many floating-point operations it takes to read a prompt.

    Two for each weight of a layer's matrices and each token, as many for attention's
    two products, counted as if nothing were masked, and the logits of one token.

    Args:
      model: The model.
      params: Its weights.
      length: T, of the prompt.

    Example:
      >>> import jax
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> prefill_flops(model, model.init(jax.random.key(0)), 4)
      9216
    """
    config = model.config
    matrices = sum(
        leaf.size
        for module, leaves in params.items()
        for leaf in leaves.values()
        if module.startswith("decoder_lm/decoder/") and leaf.ndim > 1
    )
    sizes = config.num_heads * (config.key_size + config.value_size)
    attention = config.num_layers * sizes * length
    return 2 * length * (matrices + attention) + 2 * config.vocab_size * config.d_model


def run_prefill(
    model: Model,
    params: Params,
    *,
    name: str = "a model",
    lengths: Sequence[int] = (128, 1024),
    repeats: int = 5,
    seed: int = 0,
    torch_python: str | None = None,
    gguf: Path | None = None,
    progress: bool = False,
    measure_matmul: Callable[[], float] = matmul_rate,
) -> Findings:
    """Has each program in turn read prompts of random tokens, one stream of text.

    Args:
      model: The model.
      params: Its weights.
      name: What it is called.
      lengths: Of the prompts, in tokens.
      repeats: How many runs each median is of.
      seed: Of the prompts.
      torch_python: A Python that has the peers; this one if ``None``.
      gguf: The model's file, for llama.cpp.
      progress: Whether a bar is shown on stderr.
      measure_matmul: Called once a repeat.

    Returns:
      The table, and every figure.
    """
    remarks = load_remarks()
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, model.config.vocab_size, n).tolist() for n in lengths]
    with Peers(torch_python) as peers:
        peers.add_transformers(model, params)
        peers.add_llama_cpp(gguf, context=max(lengths) + 1)
        programs: list[Program] = [
            Ours(model, quantize_params(model, params)),
            Ours(model, params),
            *peers.programs,
        ]
        turns = take_turns(
            programs,
            prompts,
            lambda program, prompt: program.run(prompt, 1).prefill_seconds,
            repeats=repeats,
            measure=measure_matmul,
            progress=progress,
        )
    rate = statistics.median(turns.measured)
    results = [
        {
            "prompt_tokens": length,
            "flops": prefill_flops(model, params, length),
            "programs": [
                _result(
                    program, runs, length, prefill_flops(model, params, length), rate
                )
                for program, runs in zip(programs, seconds, strict=True)
            ],
        }
        for length, seconds in zip(lengths, turns.runs, strict=True)
    ]
    settings = {
        "model": name,
        "prompt_tokens": ",".join(map(str, lengths)),
        "repeats": repeats,
        "seed": seed,
    }
    return Findings(
        title=f"{name}: {parameters(params):,} parameters; the reading of a prompt, "
        f"medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(row for result in results for row in _rows(result)),
        notes=(
            "tokens/s: prompt tokens over the seconds to the first new token",
            f"matrix products reach {rate / 1e9:.0f} GFLOP/s in float32, measured in "
            "the same run; bfloat16 has a limit of its own, above it",
            *peers.absent,
            *remarks,
        ),
        data={
            "command": command("prefill", settings),
            "settings": settings,
            "model": name,
            "parameters": parameters(params),
            "matmul_flops_per_second": rate,
            "matmul_runs": turns.measured,
            "lengths": results,
        },
    )


def _result(
    program: Program, seconds: Sequence[float], length: int, flops: int, rate: float
) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "name": program.name,
        "dtype": program.dtype,
        "tokens_per_second": length / median,
        "tokens_per_second_runs": [length / each for each in seconds],
        "flops_per_second": flops / median,
        "fraction_of_matmul_rate": flops / median / rate,
    }


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, *_ = result["programs"]
    for program in result["programs"]:
        is_ours = program is ours
        ratio = ours["tokens_per_second"] / program["tokens_per_second"]
        yield (
            f"{result['prompt_tokens']:,}",
            program["name"],
            program["dtype"],
            f"{program['tokens_per_second']:,.0f}",
            "" if is_ours else f"{ratio:.2f}x",
            f"{program['fraction_of_matmul_rate']:.0%}",
        )
