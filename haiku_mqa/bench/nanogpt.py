"""nanoGPT's recipe for a CPU, run by this package and, beside it, by nanoGPT itself.

Each run is a process of its own, so that its seconds hold all that a person waits
for: imports, compilation, training and evaluation. No compiled program is kept
between runs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import haiku_mqa
from haiku_mqa import model_folder
from haiku_mqa.bench.bandwidth import load_remarks
from haiku_mqa.bench.findings import Findings, command, counted, mean_and_spread
from haiku_mqa.bench.nanogpt_peer import NanoGPT
from haiku_mqa.bench.processes import output
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.model import build
from haiku_mqa.text import load_tokenizer
from haiku_mqa.training import (
    RandomWindows,
    encode_corpus,
    keep_freed_memory,
    load_run_config,
    make_loss,
    read_corpus,
    split,
    train,
)
from haiku_mqa.training.loss import mean_loss
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.events import Evaluated, Event

COLUMNS = (
    "program",
    "seconds",
    "each run",
    "validation loss",
    "on 20 random batches",
)
RECIPE = "nanogpt-cpu"
_RANDOM_BATCHES = 20  # as nanoGPT's command has it
_WARM_UP = 20  # a twentieth of the steps, as the recipe's 100 of 2,000


def run_nanogpt(
    *,
    seeds: int = 3,
    steps: int = 2000,
    nanogpt: Path | None = None,
    nanogpt_python: str | None = None,
    progress: bool = False,
) -> Findings:
    """Trains by the recipe with every seed, taking turns with nanoGPT if it is there.

    Args:
      seeds: How many runs each program gets.
      steps: Of each run.
      nanogpt: A checkout of nanoGPT, which is copied and not changed; ``None`` runs
        this package alone.
      nanogpt_python: A Python that has torch; this one if ``None``.
      progress: Whether a bar is shown on stderr.

    Returns:
      The table, and every figure.

    Raises:
      ValueError: The folder is no checkout of nanoGPT, or a run failed.
    """
    remarks = load_remarks()
    config = load_run_config(RECIPE).with_settings(
        [
            f"optimizer.total_steps={steps}",
            f"optimizer.warmup_steps={steps // _WARM_UP}",
        ]
    )
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        peer = None
        if nanogpt is not None:
            python = nanogpt_python or sys.executable
            peer = NanoGPT(nanogpt, Path(place, "nanogpt"), python, config)
        total = seeds * (1 if peer is None else 2)
        with progress_bar(total, "run", is_shown=progress) as bar:
            for seed in range(seeds):
                bar.set_description(f"haiku_mqa, seed {seed}")
                ours.append(_our_run(config, seed, Path(place, f"run-{seed}")))
                bar.update()
                if peer is not None:
                    bar.set_description(f"nanoGPT, seed {seed}")
                    theirs.append(peer.run(seed))
                    bar.update()
        programs = [_result(f"haiku_mqa {haiku_mqa.__version__}", ours)]
        if peer is not None:
            programs.append(_result(f"nanoGPT, torch {peer.torch_version}", theirs))
    settings = {
        "seeds": seeds,
        "steps": steps,
        "nanogpt": None if nanogpt is None else "FOLDER",
    }
    return Findings(
        title=f"nanoGPT's recipe for a CPU, {steps} steps, {counted(seeds)}, each run "
        "in a process of its own",
        columns=COLUMNS,
        rows=tuple(map(_row, programs)),
        notes=(*_notes(programs, config, peer), *remarks),
        data={
            "command": command("nanogpt", settings),
            "settings": {**settings, "seeds": list(range(seeds))},
            "config": config.to_dict(),
            "nanogpt_command": None if peer is None else " ".join(peer.words),
            "programs": programs,
        },
    )


# --- A run of this package ------------------------------------------------------------


def child(words: Sequence[str]) -> None:
    """Trains in this process and prints what came of it.

    Args:
      words: The run config as JSON, and the run's folder.
    """
    config = RunConfig.from_dict(json.loads(words[0]))
    losses: list[tuple[int, float]] = []

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated):
            losses.append((event.step, event.validation_loss))

    keep_freed_memory()  # as the verb train does
    train(config, out=words[1], on_event=listen)
    print(json.dumps({"validation_losses": losses}))


_CHILD = "import sys; from haiku_mqa.bench.nanogpt import child; child(sys.argv[1:])"


def _our_run(config: RunConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Returns the losses and seconds of one run in a process of its own."""
    config = config.with_settings([f"seed={seed}"])
    words = [sys.executable, "-c", _CHILD, json.dumps(config.to_dict()), str(folder)]
    hidden = ("JAX_COMPILATION_CACHE_DIR",)
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    start = time.perf_counter()
    printed = output(words, f"the run with seed {seed}", environment=env)
    seconds = time.perf_counter() - start
    losses = json.loads(printed.splitlines()[-1])["validation_losses"]
    return {
        "seed": seed,
        "seconds": seconds,
        "validation_loss": losses[-1][1],
        "validation_losses": losses,
        "random_batches_loss": _random_batches_loss(config, folder),
    }


def _random_batches_loss(config: RunConfig, folder: Path) -> float:
    """Returns the best weights' loss as nanoGPT estimates it: of a few windows."""
    decoder_config = model_folder.read_config(folder)
    params = model_folder.read_weights(folder, decoder_config)
    corpus = read_corpus(config.data.source)
    _, validation = split(corpus, config.data.validation)
    windows = RandomWindows(
        encode_corpus(validation, load_tokenizer(folder / "tokenizer.json")),
        config.data.seq_len,
        config.data.batch_size,
        seed=config.seed,
    )
    loss = jax.jit(make_loss(build(decoder_config)))
    return mean_loss(
        loss(params, windows.batch(step), None) for step in range(_RANDOM_BATCHES)
    )


# --- What is said of it ---------------------------------------------------------------


def _result(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = statistics.median(run["seconds"] for run in runs)
    return {"name": name, "seconds": seconds, "runs": runs}


def _row(program: dict[str, Any]) -> tuple[str, ...]:
    runs = program["runs"]
    whole = [run["validation_loss"] for run in runs]
    return (
        program["name"],
        f"{program['seconds']:.1f}",
        ", ".join(f"{run['seconds']:.1f}" for run in runs),
        mean_and_spread(whole),
        mean_and_spread([run["random_batches_loss"] for run in runs]),
    )


def _notes(
    programs: Sequence[dict[str, Any]], config: RunConfig, peer: NanoGPT | None
) -> list[str]:
    _, validation = split(read_corpus(config.data.source), config.data.validation)
    evaluations = len(programs[0]["runs"][0]["validation_losses"])
    read = evaluations * (validation.num_characters - 1)
    notes = [
        "seconds: the whole process, median of the runs; imports, compilation, "
        "evaluation and checkpoints included",
        "validation loss: nats per character over the whole split, mean ± standard "
        "deviation over seeds",
        f"haiku_mqa evaluates the whole validation split {evaluations} times, "
        f"{read:,} characters in all",
    ]
    if peer is not None:
        ratio = programs[1]["seconds"] / programs[0]["seconds"]
        notes += [
            f"nanoGPT evaluates {_RANDOM_BATCHES} random batches of each split "
            f"{peer.evaluations} times, {peer.evaluated_tokens:,} characters in all; "
            "its loss over the whole split is that of its checkpoint, read when the "
            "clock had stopped",
            f"haiku_mqa takes {1 / ratio:.2f} times nanoGPT's seconds: it is "
            f"{ratio:.2f} times as fast",
            *peer.remarks,
        ]
    return notes
