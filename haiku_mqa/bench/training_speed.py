"""Tokens trained on per second, beside torch and the machine's matrix products."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from haiku_mqa.bench.bandwidth import cores, load_remarks
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.matmul import matmul_rate
from haiku_mqa.bench.trainers import OPTIMIZER, OurTrainer, TorchTrainer, Trainer
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Params, build
from haiku_mqa.training import Batch

COLUMNS = ("program", "tokens/s", "ours is", "GFLOP/s", "of the matrix products")
# 6.7 million parameters: Llama's shape, with one KV head.
SHAPE = DecoderConfig(
    vocab_size=4096, num_layers=6, num_heads=8, d_model=256, d_ff=1024, max_length=256
)
_BATCH_SIZE = 8
_BATCHES = 8  # different ones, read in turn
_COMPILERS = ("c++", "g++", "clang++")


def flops_per_token(config: DecoderConfig, parameters: int, seq_len: int) -> int:
    """Returns how many floating-point operations a token costs to train on.

    Six for each parameter of a matrix, two forward and four backward, and as many for
    each product of attention, counted as if nothing were masked (Chowdhery et al.
    2022, *PaLM*, appendix B).

    Args:
      config: Of the model; its embeddings are tied.
      parameters: How many it has.
      seq_len: T.

    Example:
      >>> flops_per_token(SHAPE, 6_655_232, 256)
      44649984
    """
    sizes = config.num_heads * (config.key_size + config.value_size)
    return 6 * parameters + 6 * config.num_layers * sizes * seq_len


def run_training_speed(
    *,
    steps: int = 5,
    repeats: int = 5,
    torch_python: str | None = None,
    shape: DecoderConfig = SHAPE,
    progress: bool = False,
    measure_matmul: Callable[[], float] = matmul_rate,
) -> Findings:
    """Trains the same model with each program in turn.

    Args:
      steps: Of each run.
      repeats: How many runs each median is of.
      torch_python: A Python that has torch; this one if ``None``.
      shape: Of the model.
      progress: Whether a bar is shown on stderr.
      measure_matmul: Called once a repeat.

    Returns:
      The table, and every figure.
    """
    remarks = load_remarks()
    model = build(shape)
    params = model.init(jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    batches = _batches(shape)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers, absent = _torch_trainers(
            torch_python or sys.executable, folder, shape, params, batches
        )
        for peer in peers:
            stack.callback(peer.close)
        trainers: list[Trainer] = [OurTrainer(model, params, batches), *peers]
        turns = take_turns(
            trainers,
            [steps],
            lambda trainer, steps: trainer.run(steps),
            repeats=repeats,
            measure=measure_matmul,
            progress=progress,
        )
    tokens = steps * _BATCH_SIZE * shape.max_length
    rate = statistics.median(turns.measured)
    each_token = flops_per_token(shape, parameters, shape.max_length)
    results = [
        _result(trainer.name, runs, tokens, each_token, rate, losses[-1])
        for trainer, runs, (_, losses) in zip(
            trainers, turns.runs[0], turns.first[0], strict=True
        )
    ]
    settings = {"steps": steps, "repeats": repeats}
    return Findings(
        title=f"{parameters:,} parameters, {_BATCH_SIZE} rows of {shape.max_length} "
        f"tokens, AdamW, float32; medians of {repeats} runs of {steps} steps",
        columns=COLUMNS,
        rows=tuple(_rows(results)),
        notes=(
            f"matrix products reach {rate / 1e9:.0f} GFLOP/s here, measured in the "
            f"same run; a token costs {each_token / 1e6:.1f} MFLOP",
            "all begin with the same weights and read the same batches; after "
            f"{steps} steps their losses are "
            + ", ".join(f"{result['loss_after_first_run']:.4f}" for result in results),
            *absent,
            *remarks,
        ),
        data={
            "command": command("train", settings),
            "settings": {**settings, "seeds": [0], "threads": cores()},
            "model": shape.to_dict(),
            "parameters": parameters,
            "flops_per_token": each_token,
            "matmul_flops_per_second": rate,
            "matmul_runs": turns.measured,
            "programs": results,
        },
    )


def _batches(shape: DecoderConfig) -> list[Batch]:
    draw = np.random.default_rng(0)
    size = (_BATCHES, _BATCH_SIZE, shape.max_length + 1)
    tokens = draw.integers(0, shape.vocab_size, size, np.int32)
    # No mask, as in a run whose every label counts.
    return [Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), None) for rows in tokens]


def _torch_trainers(
    python: str,
    folder: Path,
    shape: DecoderConfig,
    params: Params,
    batches: Sequence[Batch],
) -> tuple[list[TorchTrainer], list[str]]:
    """Returns torch as it is and compiled, and a line for each that there is not."""
    arrays: dict[str, Any] = {
        f"{module}/{name}": np.asarray(leaf)
        for module, leaves in params.items()
        for name, leaf in leaves.items()
    }
    arrays["tokens"] = np.stack([batch.tokens for batch in batches])
    arrays["labels"] = np.stack([batch.labels for batch in batches])
    np.savez(folder / "arrays.npz", **arrays)
    found, absent = [], []
    for kind, compiled in (("eager", False), ("torch.compile", True)):
        if compiled and not _has_compiler():
            absent.append("torch.compile is left out: it needs a C++ compiler")
            continue
        settings = {
            **shape.to_dict(),
            **OPTIMIZER.to_dict(),
            "seq_len": shape.max_length,
            "threads": cores(),
            "compile": compiled,
        }
        try:
            found.append(TorchTrainer(python, folder, settings))
        except (OSError, ValueError) as error:
            absent.append(f"torch, {kind}, is left out: {error}")
    return found, absent


def _has_compiler() -> bool:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    return any(shutil.which(name.split()[0]) for name in names)


def _result(
    name: str,
    runs: Sequence[tuple[float, Sequence[float]]],
    tokens: int,
    flops: int,
    rate: float,
    loss: float,
) -> dict[str, Any]:
    seconds = [each for each, _ in runs]
    speed = tokens / statistics.median(seconds)
    return {
        "name": name,
        "tokens_per_second": speed,
        "tokens_per_second_runs": [tokens / each for each in seconds],
        "flops_per_second": speed * flops,
        "fraction_of_matmul_rate": speed * flops / rate,
        "loss_after_first_run": loss,
    }


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    ours = results[0]["tokens_per_second"]
    for result in results:
        ratio = ours / result["tokens_per_second"]
        yield (
            result["name"],
            f"{result['tokens_per_second']:,.0f}",
            "" if result is results[0] else f"{ratio:.2f}x",
            f"{result['flops_per_second'] / 1e9:.0f}",
            f"{result['fraction_of_matmul_rate']:.0%}",
        )
