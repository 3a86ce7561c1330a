"""What a token costs as the cache fills: multi-head, grouped and multi-query."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from haiku_mqa.bench.bandwidth import load_remarks
from haiku_mqa.bench.batch_decode import (
    BatchDecode,
    cache_bytes_per_token,
    decode_in_turns,
)
from haiku_mqa.bench.decode import weight_bytes_per_token
from haiku_mqa.bench.drawn import drawn_weights
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.remote import parameters
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.config import DecoderConfig
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.model import Model, Params, build

COLUMNS = (
    "tokens in the cache",
    "attention",
    "KV heads K",
    "cache",
    "ms/token",
    "multi-head is",
    "of the limit",
)
# About 63 million parameters; 12 heads of 64, each with a key and a value of its own.
SHAPE = DecoderConfig(
    vocab_size=8192,
    num_layers=8,
    num_heads=12,
    num_kv_heads=12,
    d_model=768,
    d_ff=2048,
)
_WIDTH_STEP = 4  # d_ff is a multiple of this: odd widths are slow, for no reason


def variants(shape: DecoderConfig, longest: int) -> list[DecoderConfig]:
    """Returns a multi-head config, a grouped and a multi-query one of its size.

    What fewer key/value heads save in parameters goes to the feed-forward, so that
    all have as many, but for rounding (Shazeer 2019).

    Args:
      shape: The multi-head one.
      longest: The context that all must have room for, in tokens.

    Example:
      >>> [(v.num_kv_heads, v.d_ff) for v in variants(SHAPE, 1024)]
      [(12, 2048), (4, 2388), (1, 2516)]
    """
    grouped = next(
        count
        for count in range(shape.num_heads // 3 or 1, 0, -1)
        if shape.num_heads % count == 0
    )
    found = []
    for count in dict.fromkeys((shape.num_heads, grouped, 1)):
        saved = (shape.num_heads - count) * (shape.key_size + shape.value_size)
        width = shape.d_ff + saved / (3 if shape.gated else 2)
        config = dataclasses.replace(
            shape,
            num_kv_heads=count,
            d_ff=round(width / _WIDTH_STEP) * _WIDTH_STEP,
            max_length=longest + CHUNK,
        )
        found.append(config)
    return found


def run_context(
    *,
    contexts: Sequence[int] = (128, 1024, 4096, 8192),
    repeats: int = 5,
    shape: DecoderConfig = SHAPE,
    progress: bool = False,
    decode_with: Callable[..., Any] = decode_in_turns,
) -> Findings:
    """Decodes with each kind of attention in turn, from fuller and fuller caches.

    Args:
      contexts: How many tokens are in the cache when decoding begins.
      repeats: How many runs each median is of.
      shape: Of the multi-head model.
      progress: Whether a bar is shown on stderr.
      decode_with: As ``decode_in_turns``, which it replaces in tests.

    Returns:
      The table, and every figure.
    """
    remarks = load_remarks()
    models = [build(config) for config in variants(shape, max(contexts))]
    weights = [drawn_weights(model) for model in models]
    measured: list[tuple[Model, Params, int, int, list[float]]] = []
    bandwidths: list[float] = []
    total = repeats * len(models) * len(contexts)
    with progress_bar(total, "run", is_shown=progress) as bar:
        for context in contexts:  # outermost: the caches of one fit into memory
            bar.set_description(f"{context:,} tokens")
            batches = [
                BatchDecode(model, params, batch_size=1, context=context, is_read=False)
                for model, params in zip(models, weights, strict=True)
            ]
            seconds, bandwidth = decode_with(batches, repeats, on_run=bar.update)
            bandwidths.append(bandwidth)
            measured += [
                (model, params, context, batch.bytes_per_step, runs)
                for model, params, batch, runs in zip(
                    models, weights, batches, seconds, strict=True
                )
            ]
            del batches  # and their caches, before the next ones are made
    bandwidth = statistics.median(bandwidths)
    results = [
        _result(model, params, context, read, runs, bandwidth)
        for model, params, context, read, runs in measured
    ]
    settings = {"contexts": ",".join(map(str, contexts)), "repeats": repeats}
    sizes = ", ".join(f"{parameters(params):,}" for params in weights)
    return Findings(
        title=f"{shape.num_layers} layers of width {shape.d_model}, "
        f"{shape.num_heads} heads; one stream of text, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(_rows(results)),
        notes=(
            f"parameters: {sizes}, as the feed-forward gets what fewer heads save",
            "cache: bytes of keys and values, as computed from the shapes",
            f"ms/token: over {CHUNK} new tokens, greedy; the cache is counted as full "
            "and not read first, as what it holds does not change the time",
            "limit: the bytes of weights and cache that a step reads, over the "
            f"memory's speed of {bandwidth / 1e9:.1f} GB/s, "
            "measured in the same run",
            *remarks,
        ),
        data={
            "command": command("context", settings),
            "settings": settings,
            "shape": shape.to_dict(),
            "bandwidth_bytes_per_second": bandwidth,
            "bandwidth_runs": bandwidths,
            "models": results,
        },
    )


def _result(
    model: Model,
    params: Params,
    context: int,
    bytes_per_step: int,
    seconds: Sequence[float],
    bandwidth: float,
) -> dict[str, Any]:
    config = model.config
    median, limit = statistics.median(seconds), bytes_per_step / bandwidth
    return {
        "attention": kind(config),
        "num_kv_heads": config.num_kv_heads,
        "d_ff": config.d_ff,
        "parameters": parameters(params),
        "weight_bytes_per_token": weight_bytes_per_token(model, params),
        "context": context,
        "cache_bytes": context * cache_bytes_per_token(config),
        "decode_us_per_token_runs": [1e6 * each for each in seconds],
        "decode_us_per_token": 1e6 * median,
        "limit_us_per_token": 1e6 * limit,
        "fraction_of_limit": limit / median,
    }


def kind(config: DecoderConfig) -> str:
    """Returns what attention with so many key/value heads is called.

    Args:
      config: Of the model.

    Example:
      >>> kind(SHAPE)
      'multi-head'
    """
    if config.num_kv_heads == config.num_heads:
        return "multi-head"
    return "multi-query" if config.num_kv_heads == 1 else "grouped"


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    whole: dict[str, Any] = {}
    for result in results:
        is_whole = result["context"] != whole.get("context")
        whole = result if is_whole else whole
        ratio = whole["decode_us_per_token"] / result["decode_us_per_token"]
        yield (
            f"{result['context']:,}",
            result["attention"],
            str(result["num_kv_heads"]),
            f"{result['cache_bytes'] / 1e6:,.1f} MB",
            f"{result['decode_us_per_token'] / 1e3:.2f}",
            "" if is_whole else f"{ratio:.2f}x",
            f"{result['fraction_of_limit']:.0%}",
        )
