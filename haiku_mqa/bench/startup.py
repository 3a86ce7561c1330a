"""From a process's start to its first token, and the memory that this takes."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import haiku_mqa
from haiku_mqa.bench.bandwidth import cores, load_remarks
from haiku_mqa.bench.batch_decode import cache_bytes_per_token
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.processes import last_line, output
from haiku_mqa.bench.remote import SCRIPT, Peers, parameters
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.generation.generate import bucket
from haiku_mqa.zoo.loading import LoadedModel

COLUMNS = (
    "model",
    "program",
    "s to first token",
    "ours is",
    "peak memory",
    "weights and cache",
    "peak is",
)
# More than one, so that the process is still there when its memory is looked at.
_NEW_TOKENS = 16


class Start(NamedTuple):
    """One process that was started.

    Attributes:
      seconds: From the start to its first token.
      peak_bytes: The most memory that it held until then; ``None`` where the system
        does not tell.
    """

    seconds: float
    peak_bytes: int | None


class Starter(NamedTuple):
    """A program that can be started again and again.

    Attributes:
      model: What it loads.
      name: What it is called.
      words: Its command.
      shown: How many bytes it prints before the first token.
      held_bytes: Of the weights and the cache that it holds.
    """

    model: str
    name: str
    words: tuple[str, ...]
    shown: int
    held_bytes: int


def start_once(words: Sequence[str], shown: int = 0) -> Start:
    """Starts a process, and waits for its first token and then for its end.

    Args:
      words: Its command.
      shown: How many bytes it prints before.

    Returns:
      How long it took, and how much memory.

    Raises:
      OSError: It could not be started.
      ValueError: It ended before; the message has its last line.

    Example:
      >>> start_once(["echo", "token"]).seconds > 0
      True
    """
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        with process:
            seen, said = 0, b"-"
            while said and seen <= shown and process.stdout is not None:
                said = os.read(process.stdout.fileno(), 4096)
                seen += len(said)
            seconds = time.perf_counter() - begin
            peak = peak_memory(process.pid)
            process.communicate()
        if process.returncode or seen <= shown:
            errors.seek(0)
            raise ValueError(f"{words[0]} failed: {last_line(errors.read())}")
    return Start(seconds, peak)


def peak_memory(process: int | str = "self") -> int | None:
    """Returns the most memory that a process has held so far, in bytes.

    Args:
      process: Its id; this one's if left out.

    Returns:
      Resident bytes; ``None`` where the system does not tell (only Linux does).
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def run_startup(
    models: Sequence[tuple[str, LoadedModel]],
    *,
    prompt: str = "The capital of France is",
    repeats: int = 5,
    torch_python: str | None = None,
    progress: bool = False,
    start: Callable[[Sequence[str], int], Start] = start_once,
) -> Findings:
    """Starts ``haiku-mqa generate``, and transformers with the same weights, in turn.

    Each is started once before, untimed: that fills the cache of compiled programs,
    and brings files near.

    Args:
      models: What ``--model`` takes, and the model that it means.
      prompt: The text that is continued.
      repeats: How many starts each median is of.
      torch_python: A Python that has torch and transformers; this one if ``None``.
      progress: Whether a bar is shown on stderr.
      start: As ``start_once``, which it replaces in tests.

    Returns:
      The table, and every figure.
    """
    remarks = load_remarks()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = stack.enter_context(Peers(torch_python))
        starters = [Starter("no model", "python and jax alone", _JAX_ALONE, 0, 0)]
        for place, (name, loaded) in enumerate(models):
            starters.append(_ours(name, loaded, prompt))
            theirs = _theirs(
                name, loaded, prompt, peers, torch_python, folder / str(place)
            )
            starters += [] if theirs is None else [theirs]
        runs: list[list[Start]] = [[] for _ in starters]
        total = (1 + repeats) * len(starters)
        with progress_bar(total, "start", is_shown=progress) as bar:
            for repeat in range(1 + repeats):
                for starter, own in zip(starters, runs, strict=True):
                    bar.set_description(f"{starter.model}, {starter.name}")
                    started = start(starter.words, starter.shown)
                    if repeat:
                        own.append(started)
                    bar.update()
    results = [
        _result(starter, own) for starter, own in zip(starters, runs, strict=True)
    ]
    settings = {"prompt": repr(prompt), "repeats": repeats}
    return Findings(
        title=f"from the start of a process to its first token, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(_rows(results)),
        notes=(
            "programs were compiled by a start before, and files lay in the system's "
            "cache",
            "peak memory: the most that the process held until its first token, beside "
            "the bytes of its weights and its cache as computed",
            *peers.absent,
            *remarks,
        ),
        data={
            "command": command("startup", settings),
            "settings": settings,
            "programs": results,
        },
    )


_JAX_ALONE = (sys.executable, "-c", "import jax; print(jax.devices())")


def _ours(name: str, loaded: LoadedModel, prompt: str) -> Starter:
    words = ("generate", "--model", name, "--temperature", "0", "--dtype")
    return Starter(
        name,
        f"haiku_mqa {haiku_mqa.__version__}",
        (
            sys.executable,
            "-m",
            "haiku_mqa",
            *words,
            loaded.model.config.dtype,
            "--max-new-tokens",
            str(_NEW_TOKENS),
            prompt,
        ),
        len(prompt.encode()),
        sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
        + _cache_bytes(loaded, prompt),
    )


def _theirs(
    name: str,
    loaded: LoadedModel,
    prompt: str,
    peers: Peers,
    torch_python: str | None,
    out: Path,
) -> Starter | None:
    """Returns transformers with a model's weights, or says why it is left out."""
    python = torch_python or sys.executable
    folder = peers.write_weights(loaded.model, loaded.params, name)
    if folder is None:
        return None
    words = (python, "-I", str(SCRIPT))
    try:
        output([*words, "save", str(folder), str(out)], "transformers")
    except (OSError, ValueError) as error:
        peers.absent.append(f"{name}: transformers is not run: {error}")
        return None
    tokens = _encoded(loaded, prompt)
    return Starter(
        name,
        "transformers, float32",
        (*words, "start", str(out), str(cores()), *map(str, tokens)),
        0,
        4 * parameters(loaded.params) + _cache_bytes(loaded, prompt),
    )


def _cache_bytes(loaded: LoadedModel, prompt: str) -> int:
    length = bucket(len(_encoded(loaded, prompt)) + _NEW_TOKENS)
    return length * cache_bytes_per_token(loaded.model.config)


def _encoded(loaded: LoadedModel, prompt: str) -> list[int]:
    if loaded.tokenizer is None:
        raise ValueError("model has no tokenizer to read text with")
    return list(loaded.tokenizer.encode(prompt))


def _result(starter: Starter, runs: Sequence[Start]) -> dict[str, Any]:
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    peak = statistics.median(peaks) if peaks else None
    held = starter.held_bytes
    return {
        "model": starter.model,
        "program": starter.name,
        "seconds_to_first_token": statistics.median(run.seconds for run in runs),
        "seconds_runs": [run.seconds for run in runs],
        "peak_bytes": peak,
        "peak_runs": peaks,
        "weight_and_cache_bytes": held,
        "peak_ratio": peak / held if peak and held else None,
    }


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    ours: dict[str, Any] = {}
    for result in results:
        is_first = result["model"] != ours.get("model")
        ours = result if is_first else ours
        ratio = result["seconds_to_first_token"] / ours["seconds_to_first_token"]
        peak, held = result["peak_bytes"], result["weight_and_cache_bytes"]
        yield (
            result["model"],
            result["program"],
            f"{result['seconds_to_first_token']:.2f}",
            "" if is_first else f"{ratio:.2f}x",
            "not told" if peak is None else f"{peak / 1e6:,.0f} MB",
            f"{held / 1e6:,.0f} MB" if held else "",
            f"{result['peak_ratio']:.2f}x" if result["peak_ratio"] else "",
        )
