"""What an accelerator gives: its memory, its products, and a decoder between them."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from haiku_mqa.bench.bandwidth import load_remarks, read_bandwidth
from haiku_mqa.bench.decode import Ours, Program
from haiku_mqa.bench.drawn import drawn_weights
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.matmul import matmul_rate
from haiku_mqa.bench.prefill import prefill_flops
from haiku_mqa.bench.remote import Peers, parameters
from haiku_mqa.bench.standing import Standing
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import unknown_name
from haiku_mqa.model import build
from haiku_mqa.ops import causal_mask, multi_query_attention
from haiku_mqa.ops.fused import Implementation, refusal

COLUMNS = ("what", "by", "weights", "measured", "of the limit")
PRESETS = {
    # The shape of today's smallest language models, but for its one key/value head.
    "1b": DecoderConfig(
        vocab_size=32_768,
        num_layers=16,
        num_heads=16,
        d_model=2048,
        d_ff=8192,
        max_length=4096,
        param_dtype="bfloat16",
        dtype="bfloat16",
    ),
    "tiny": DecoderConfig(
        vocab_size=256,
        num_layers=2,
        num_heads=4,
        d_model=64,
        d_ff=128,
        max_length=4096,
        param_dtype="bfloat16",
        dtype="bfloat16",
    ),
}
_PRODUCT = {"1b": 8192, "tiny": 256}  # rows of the matrices that are multiplied
_STREAM = {"1b": None, "tiny": 1 << 24}  # bytes that are read; see read_bandwidth


def check_device(device: str | None) -> str:
    """Returns what jax runs on, if that is what was asked for.

    Args:
      device: ``"gpu"``, ``"tpu"`` or ``"cpu"``; an accelerator, whichever there is,
        if ``None``.

    Returns:
      The device in the same words.

    Raises:
      ValueError: jax runs on something else here.

    Example:
      >>> check_device("cpu")
      'cpu'
    """
    here = jax.default_backend()
    if device is None and here == "cpu":
        raise ValueError(
            "no accelerator is here: jax runs on cpu; --device cpu --preset tiny tries "
            "the measurement on it"
        )
    if device not in (None, here):
        raise ValueError(f"device must be {here}, what jax runs on here, got {device}")
    return here


def run_accelerator(
    *,
    preset: str = "1b",
    device: str | None = None,
    prompt_tokens: int = 2048,
    new_tokens: int = 257,
    repeats: int = 5,
    seed: int = 0,
    torch_python: str | None = None,
    progress: bool = False,
) -> Findings:
    """Measures a device's limits, and how near to them one stream of text comes.

    Args:
      preset: Which decoder: ``"1b"``, of 1.0 billion parameters, or ``"tiny"``. Their
        weights are drawn, in bfloat16.
      device: As ``check_device``.
      prompt_tokens: Length of the prompt, of random tokens.
      new_tokens: How many tokens each run chooses, >= 2.
      repeats: How many runs each median is of.
      seed: Of weights and prompt.
      torch_python: A Python that has torch and transformers; this one if ``None``.
      progress: Whether a bar is shown on stderr.

    Returns:
      The table, and every figure.

    Raises:
      ValueError: There is no such preset or device, or prompt and new tokens are more
        than the decoder's context.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    here, config = check_device(device), PRESETS[preset]
    if prompt_tokens + new_tokens > config.max_length:
        raise ValueError(
            f"prompt_tokens and new_tokens must be at most {config.max_length} "
            f"together, the context of preset {preset}, got {prompt_tokens} + "
            f"{new_tokens}"
        )
    remarks = load_remarks()
    model = build(config)
    params = drawn_weights(model, seed)
    draw = np.random.default_rng(seed)
    prompt = draw.integers(0, config.vocab_size, prompt_tokens).tolist()

    def measure() -> tuple[float, float]:
        rate = matmul_rate(_PRODUCT[preset], dtype=config.dtype)
        return read_bandwidth(_STREAM[preset]), rate

    with Peers(torch_python) as peers:
        peers.add_drawn_transformers(model, params, here)
        programs: list[Program] = [Ours(model, params), *peers.programs]
        turns = take_turns(
            programs,
            [prompt],
            lambda program, prompt: program.run(prompt, new_tokens),
            repeats=repeats,
            measure=measure,
            progress=progress,
        )
    bandwidths, rates = map(list, zip(*turns.measured, strict=True))
    attention, why_not = _attentions(config, prompt_tokens, repeats)
    limits = {
        "bandwidth_bytes_per_second": statistics.median(bandwidths),
        "matmul_flops_per_second": statistics.median(rates),
        "bandwidth_runs": bandwidths,
        "matmul_runs": rates,
    }
    flops = prefill_flops(model, params, prompt_tokens)
    results = [
        _result(Standing.of(program, runs, prompt_tokens), limits, flops, prompt_tokens)
        for program, runs in zip(programs, turns.runs[0], strict=True)
    ]
    settings = {
        "preset": preset,
        "device": here,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
    }
    name = jax.devices()[0].device_kind
    data = {
        "command": command("accelerator", settings),
        "settings": settings,
        "config": config.to_dict(),
        "parameters": parameters(params),
        "prefill_flops": flops,
        **limits,
        "programs": results,
        "attention": attention,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }
    return Findings(
        title=f"{parameters(params):,} parameters on {name}; {prompt_tokens} prompt "
        f"tokens and {new_tokens} new ones, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(map(tuple, _rows(data, name))),
        notes=(
            "limit of decode: every token reads the weights, at the memory's speed",
            "limit of prefill and of attention: their floating-point operations, at "
            "the speed of matrix products",
            f"attention: of {prompt_tokens} tokens to those before them, once for each "
            f"of {config.num_layers} layers",
            *([f"cudnn is not run: {why_not}"] if why_not else []),
            *peers.absent,
            *remarks,
        ),
        data=data,
    )


def _result(
    standing: Standing, limits: dict[str, Any], flops: int, prompt_tokens: int
) -> dict[str, Any]:
    bandwidth = limits["bandwidth_bytes_per_second"]
    limit = bandwidth / standing.weight_bytes_per_token
    rate = standing.prefill / prompt_tokens * flops
    return {
        "name": standing.name,
        "dtype": standing.dtype,
        "weight_bytes_per_token": standing.weight_bytes_per_token,
        "decode_tokens_per_second": standing.decode,
        "decode_runs": list(standing.decode_tokens_per_second),
        "decode_fraction_of_limit": standing.decode / limit,
        "prefill_tokens_per_second": standing.prefill,
        "prefill_runs": list(standing.prefill_tokens_per_second),
        "prefill_fraction_of_limit": rate / limits["matmul_flops_per_second"],
    }


class _Attention(NamedTuple):
    name: Implementation


def _attentions(
    config: DecoderConfig, length: int, repeats: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Returns what attention takes by each implementation, and why one is left out."""
    shapes = (
        (1, length, config.num_heads, config.key_size),
        (1, length, config.num_kv_heads, config.key_size),
        (1, length, config.num_kv_heads, config.key_size),
    )
    rngs = jax.random.split(jax.random.key(0), len(shapes))
    q, k, v = (
        jax.random.normal(rng, shape, config.dtype)
        for rng, shape in zip(rngs, shapes, strict=True)
    )
    mask = causal_mask(length)
    why_not = refusal(q, k, v, mask[None, None])
    names: list[Implementation] = ["xla"] if why_not else ["xla", "cudnn"]

    def timed(program: _Attention, arrays: Sequence[jax.Array]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(_attend(*arrays, program.name, config.num_layers))
        return time.perf_counter() - start

    programs = [_Attention(name) for name in names]
    turns = take_turns(
        programs, [(q, k, v, mask)], timed, repeats=repeats, measure=lambda: None
    )
    # Two products, counted as if nothing were masked.
    flops = 4 * config.num_layers * length**2 * config.num_heads * config.key_size
    return [
        {
            "implementation": name,
            "seconds": statistics.median(own),
            "seconds_runs": own,
            "flops": flops,
        }
        for name, own in zip(names, turns.runs[0], strict=True)
    ], why_not


@functools.partial(jax.jit, static_argnums=(4, 5))
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    implementation: Implementation,
    times: int,
) -> jax.Array:
    # One after another in one program, or the way to the device would be timed too.
    def again(_: jax.Array, q: jax.Array) -> jax.Array:
        return multi_query_attention(q, k, v, mask, implementation=implementation)

    return jax.lax.fori_loop(0, times, again, q)


def _rows(data: dict[str, Any], device: str) -> Iterator[Sequence[str]]:
    bandwidth, rate = (
        data["bandwidth_bytes_per_second"],
        data["matmul_flops_per_second"],
    )
    dtype = data["config"]["dtype"]
    yield "memory", device, "", f"{bandwidth / 1e9:,.0f} GB/s", ""
    yield "matrix products", device, dtype, f"{rate / 1e12:,.2f} TFLOP/s", ""
    for phase in ("decode", "prefill"):
        for program in data["programs"]:
            speed = program[f"{phase}_tokens_per_second"]
            share = program[f"{phase}_fraction_of_limit"]
            yield (
                *(phase, program["name"], program["dtype"]),
                *(f"{speed:,.1f} tokens/s", f"{share:.0%}"),
            )
    for each in data["attention"]:
        share = each["flops"] / each["seconds"] / rate
        yield (
            *("attention", each["implementation"], ""),
            *(f"{1e3 * each['seconds']:,.2f} ms", f"{share:.0%}"),
        )
