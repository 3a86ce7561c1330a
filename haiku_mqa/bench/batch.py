"""Many streams of text at once: tokens per second of all rows together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from haiku_mqa.bench.bandwidth import load_remarks, read_bandwidth
from haiku_mqa.bench.batch_decode import cache_bytes_per_token
from haiku_mqa.bench.decode import Ours, Program, Timing, weight_bytes_per_token
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.matmul import matmul_rate
from haiku_mqa.bench.remote import Peers, parameters
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.model import Model, Params
from haiku_mqa.quantization import quantize_params

COLUMNS = (
    "rows B",
    "program",
    "weights",
    "prefill tokens/s",
    "decode tokens/s",
    "ours is",
    "all tokens/s",
    "of the limit",
)


class RowsProgram(Program, Protocol):
    """A ``Program`` that continues several prompts at once."""

    def run_rows(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        """Continues prompts of one length together.

        Args:
          prompts: Token ids, a list for each row.
          new_tokens: How many tokens are to be chosen in each row.

        Returns:
          How long it took, and the tokens of the first row.
        """
        ...


def run_batch(
    model: Model,
    params: Params,
    *,
    name: str = "a model",
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    torch_python: str | None = None,
    progress: bool = False,
    measure_bandwidth: Callable[[], float] = read_bandwidth,
    measure_matmul: Callable[[], float] = matmul_rate,
) -> Findings:
    """Has each program in turn continue more and more prompts together, greedily.

    Args:
      model: The model.
      params: Its weights.
      name: What it is called.
      batch_sizes: B, rows.
      prompt_tokens: Of each row, random.
      new_tokens: How many tokens each row gets, >= 2.
      repeats: How many runs each median is of.
      seed: Of the prompts.
      torch_python: A Python that has torch and transformers; this one if ``None``.
      progress: Whether a bar is shown on stderr.
      measure_bandwidth: Called once a repeat.
      measure_matmul: Called once a repeat.

    Returns:
      The table, and every figure.
    """
    remarks = load_remarks()
    draw = np.random.default_rng(seed)
    size = (max(batch_sizes), prompt_tokens)
    prompts = draw.integers(0, model.config.vocab_size, size).tolist()
    with Peers(torch_python) as peers:
        peers.add_transformers(model, params)
        programs: list[RowsProgram] = [
            Ours(model, quantize_params(model, params)),
            Ours(model, params),
            *peers.programs,
        ]
        turns = take_turns(
            programs,
            batch_sizes,
            lambda program, rows: program.run_rows(prompts[:rows], new_tokens),
            repeats=repeats,
            measure=lambda: (measure_bandwidth(), measure_matmul()),
            progress=progress,
        )
    bandwidths, rates = map(list, zip(*turns.measured, strict=True))
    bandwidth, rate = statistics.median(bandwidths), statistics.median(rates)
    results = [
        {
            "batch_size": rows,
            "programs": [
                _result(
                    program,
                    runs,
                    rows,
                    (prompt_tokens, new_tokens),
                    _limit(
                        model,
                        params,
                        program,
                        rows,
                        size[1] + new_tokens,
                        bandwidth,
                        rate,
                    ),
                )
                for program, runs in zip(programs, by_program, strict=True)
            ],
        }
        for rows, by_program in zip(batch_sizes, turns.runs, strict=True)
    ]
    settings = {
        "model": name,
        "batch_sizes": ",".join(map(str, batch_sizes)),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    return Findings(
        title=f"{name}: {parameters(params):,} parameters; {prompt_tokens} prompt "
        f"tokens and {new_tokens} new ones in each row, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(row for result in results for row in _rows(result)),
        notes=(
            "tokens/s: of all rows together; decode counts the new tokens after the "
            "first, and all is prompts and new tokens over the whole time",
            "limit of decode: weights and caches are read at memory's speed, "
            f"{bandwidth / 1e9:.1f} GB/s, and matrices multiplied at {rate / 1e9:.0f} "
            "GFLOP/s (float32), whichever takes longer; both measured in the same run",
            *peers.absent,
            *remarks,
        ),
        data={
            "command": command("batch", settings),
            "settings": settings,
            "model": name,
            "parameters": parameters(params),
            "bandwidth_bytes_per_second": bandwidth,
            "bandwidth_runs": bandwidths,
            "matmul_flops_per_second": rate,
            "matmul_runs": rates,
            "batches": results,
        },
    )


def _limit(
    model: Model,
    params: Params,
    program: Program,
    rows: int,
    length: int,
    bandwidth: float,
    rate: float,
) -> float:
    """Returns the most tokens per second that all rows together could choose."""
    config = model.config
    # Beside int8 weights, the cache is what it is beside others.
    kept = config.dtype if program.dtype == "int8" else program.dtype
    scale = jnp.dtype(kept).itemsize / jnp.dtype(config.dtype).itemsize
    cache = scale * length * cache_bytes_per_token(config)
    reading = (program.weight_bytes + rows * cache) / bandwidth
    # A weight is multiplied and added once for each row.
    products = 2 * rows * weight_bytes_per_token(model, params, itemsize=1) / rate
    return rows / max(reading, products)


def _result(
    program: Program,
    timings: Sequence[Timing],
    rows: int,
    tokens: tuple[int, int],
    limit: float,
) -> dict[str, Any]:
    prompt_tokens, new_tokens = tokens
    prefill = [rows * prompt_tokens / t.prefill_seconds for t in timings]
    decode = [rows * (new_tokens - 1) / t.decode_seconds for t in timings]
    whole = [
        rows * sum(tokens) / (t.prefill_seconds + t.decode_seconds) for t in timings
    ]
    median = statistics.median(decode)
    return {
        "name": program.name,
        "dtype": program.dtype,
        "prefill_tokens_per_second": statistics.median(prefill),
        "decode_tokens_per_second": median,
        "all_tokens_per_second": statistics.median(whole),
        "prefill_runs": prefill,
        "decode_runs": decode,
        "all_runs": whole,
        "limit_tokens_per_second": limit,
        "fraction_of_limit": median / limit,
    }


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    ours, *_ = result["programs"]
    for program in result["programs"]:
        ratio = ours["decode_tokens_per_second"] / program["decode_tokens_per_second"]
        yield (
            str(result["batch_size"]),
            program["name"],
            program["dtype"],
            f"{program['prefill_tokens_per_second']:,.0f}",
            f"{program['decode_tokens_per_second']:,.1f}",
            "" if program is ours else f"{ratio:.2f}x",
            f"{program['all_tokens_per_second']:,.1f}",
            f"{program['fraction_of_limit']:.0%}",
        )
