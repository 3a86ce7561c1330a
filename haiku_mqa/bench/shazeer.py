"""Shazeer 2019 at a small scale: what one key/value head costs, and what it saves.

*Fast Transformer Decoding: One Write-Head is All You Need* holds multi-query
attention against multi-head attention of the same number of parameters, and against
multi-head attention with as small a cache: fewer or smaller heads (tables 1 and 2),
and tells what a token costs to train on and to decode (table 3).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

from haiku_mqa.bench.batch_decode import (
    BatchDecode,
    cache_bytes_per_token,
    decode_figures,
    decode_in_turns,
)
from haiku_mqa.bench.findings import Findings, command, counted, mean_and_spread
from haiku_mqa.bench.scale import Scale, Trained, progress_bar, train_once
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.training import Corpus, read_corpus

_WIDTH_STEP = 4  # d_ff is a multiple of this: odd widths are slow, for no reason

COLUMNS = (
    "attention",
    "heads N",
    "size H",
    "KV heads K",
    "d_ff",
    "parameters",
    "validation loss",
    "training s",
    "decode µs/token",
    "of the limit",
    "cache bytes/token",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      name: What it is called.
      num_heads: N.
      key_size: H.
      num_kv_heads: K.
      d_ff: F, such that all variants have as many parameters.
    """

    name: str
    num_heads: int
    key_size: int
    num_kv_heads: int
    d_ff: int


def variants(scale: Scale) -> list[Variant]:
    """Returns the paper's variants at a scale, the multi-head one first.

    All but the first have the same cache: one key and one value of H numbers, or of
    as many numbers in several smaller heads. What that saves in attention is spent
    in the feed-forward, so that all have as many parameters, but for rounding.

    Args:
      scale: The scale.

    Example:
      >>> [(v.name, v.d_ff) for v in variants(Scale())][:2]
      [('multi-head', 512), ('multi-query', 588)]
      >>> [(v.num_heads, v.key_size) for v in variants(Scale())][2:]
      [(1, 16), (2, 8), (4, 4), (8, 2)]
    """
    heads, size = scale.num_heads, scale.d_model // scale.num_heads

    def widened(name: str, num_heads: int, key_size: int, num_kv_heads: int) -> Variant:
        # q and output are N wide, k and v are K wide; three matrices are F wide.
        saved = 2 * (heads * size - num_heads * key_size)
        saved += 2 * (heads * size - num_kv_heads * key_size)
        width = scale.d_ff + saved / 3
        rounded = round(width / _WIDTH_STEP) * _WIDTH_STEP
        return Variant(name, num_heads, key_size, num_kv_heads, rounded)

    found = [
        Variant("multi-head", heads, size, heads, scale.d_ff),
        widened("multi-query", heads, size, 1),
    ]
    count = 1
    while count <= heads and size // count >= 2:
        name = "multi-head, one head" if count == 1 else f"multi-head, {count} small"
        found.append(widened(name, count, size // count, count))
        count *= 2
    return found


def run_shazeer(
    *,
    steps: int = 1000,
    seeds: int = 3,
    batch_size: int = 64,
    context: int = 512,
    repeats: int = 5,
    scale: Scale | None = None,
    corpus: Corpus | None = None,
    progress: bool = False,
    decode_with: Callable[..., Any] = decode_in_turns,
) -> Findings:
    """Trains every variant with every seed, and decodes with each in turn.

    Args:
      steps: Of each training run.
      seeds: How many runs each variant gets.
      batch_size: B of decoding, rows.
      context: How many tokens each row has read before decoding begins.
      repeats: How many runs each median of decoding is of.
      scale: Of the models.
      corpus: What to train on; the embedded one if ``None``.
      progress: Whether a bar is shown on stderr.
      decode_with: As ``decode_in_turns``, which it replaces in tests.

    Returns:
      The table, and every figure.
    """
    scale = scale or Scale()
    corpus = corpus or read_corpus()
    chosen = variants(scale)
    runs: list[list[Trained]] = [[] for _ in chosen]
    with progress_bar(seeds * len(chosen) * steps, "step", is_shown=progress) as bar:
        for seed in range(seeds):  # outermost, so that variants take turns
            for variant, done in zip(chosen, runs, strict=True):
                bar.set_description(f"{variant.name}, seed {seed}")
                config = scale.run_config(
                    steps=steps,
                    seed=seed,
                    num_heads=variant.num_heads,
                    num_kv_heads=variant.num_kv_heads,
                    key_size=variant.key_size,
                    d_ff=variant.d_ff,
                    # Rotary positions turn pairs of numbers, each at one wavelength:
                    # small heads would be held back for having few.
                    position_embedding="learned",
                    max_length=max(scale.seq_len, context + CHUNK),
                )
                done.append(train_once(config, corpus, bar.update))
    with progress_bar(repeats * len(chosen), "run", is_shown=progress) as bar:
        bar.set_description("decoding")
        batches = [
            BatchDecode(
                done[0].model, done[0].params, batch_size=batch_size, context=context
            )
            for done in runs
        ]
        seconds, bandwidth = decode_with(batches, repeats, on_run=bar.update)
    results = [
        _result(variant, done, batch, decoded, bandwidth)
        for variant, done, batch, decoded in zip(
            chosen, runs, batches, seconds, strict=True
        )
    ]
    settings = {
        "steps": steps,
        "seeds": seeds,
        "batch_size": batch_size,
        "context": context,
        "repeats": repeats,
    }
    return Findings(
        title=f"{scale.num_layers} layers of width {scale.d_model}, {steps} steps of "
        f"{scale.batch_size} rows of {scale.seq_len} characters, {counted(seeds)}",
        columns=COLUMNS,
        rows=tuple(_row(result) for result in results),
        notes=(
            "validation loss: nats per character over the whole split, after the last "
            "step, mean ± standard deviation over seeds",
            "training s: median over seeds, compilation and one evaluation included",
            f"decode: {batch_size} rows with {context} tokens each before, {CHUNK} new "
            f"ones, greedy, medians of {repeats}",
            "limit: the bytes of weights and caches that a step reads, over the "
            f"memory's speed of {bandwidth / 1e9:.1f} GB/s",
        ),
        data={
            "command": command("shazeer", settings),
            "settings": {**settings, "seeds": list(range(seeds))},
            "scale": dataclasses.asdict(scale),
            "corpus_sha256": corpus.sha256,
            "bandwidth_bytes_per_second": bandwidth,
            "variants": results,
        },
    )


def _result(
    variant: Variant,
    done: list[Trained],
    batch: BatchDecode,
    seconds: list[float],
    bandwidth: float,
) -> dict[str, Any]:
    decoding = decode_figures(batch, seconds, bandwidth)
    speeds = [run.tokens_per_second for run in done]
    return {
        **dataclasses.asdict(variant),
        "parameters": done[0].parameters,
        "validation_losses": [run.validation_loss for run in done],
        "training_seconds": [run.seconds for run in done],
        "training_us_per_token": [1e6 / speed for speed in speeds],
        **decoding,
        "fraction_of_limit": decoding["limit_us_per_token"]
        / decoding["decode_us_per_token"],
        "cache_bytes_per_token": cache_bytes_per_token(done[0].model.config),
    }


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        result["name"],
        str(result["num_heads"]),
        str(result["key_size"]),
        str(result["num_kv_heads"]),
        str(result["d_ff"]),
        f"{result['parameters']:,}",
        mean_and_spread(result["validation_losses"]),
        f"{statistics.median(result['training_seconds']):.1f}",
        f"{result['decode_us_per_token']:.2f}",
        f"{result['fraction_of_limit']:.0%}",
        f"{result['cache_bytes_per_token']:,}",
    )
