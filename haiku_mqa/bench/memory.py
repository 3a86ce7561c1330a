"""The most memory that a process holds to generate, over what it must hold."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.processes import output
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.zoo.sources import cache_folder

COLUMNS = ("held in", "weights", "cache", "peak over jax alone", "ratio")
GOAL = 1.25  # of what must be held

_SCRIPT = Path(__file__).with_name("memory_script.py")


class Form(NamedTuple):
    """What weights are held in.

    Attributes:
      name: As it is shown.
      dtype: As ``load_pretrained``.
      quantize: Likewise; ``"none"`` for nothing.
    """

    name: str
    dtype: str
    quantize: str


FORMS = (
    Form("float32", "float32", "none"),
    Form("bfloat16", "bfloat16", "none"),
    Form("int8", "float32", "int8"),
)


def run_once(words: Sequence[str]) -> Mapping[str, Any]:
    """Runs ``memory_script.py``, and returns what it told of itself.

    Args:
      words: After its name.

    Returns:
      ``peak_bytes``, and for a model ``weight_bytes`` and ``cache_bytes`` as well.

    Raises:
      OSError: It could not be started.
      ValueError: It failed; the message has its last line.
    """
    # Python puts no folder of this package before the libraries that it imports.
    told = output(
        [sys.executable, "-P", str(_SCRIPT), *words],
        "loading and generating",
        environment={**os.environ, **_compiled_before()},
    )
    return json.loads(told)


def run_memory(
    source: str,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 3,
    progress: bool = False,
    run: Callable[[Sequence[str]], Mapping[str, Any]] = run_once,
) -> Findings:
    """Loads a model and generates, in a process of its own for each form of weights.

    Each is started once before, unmeasured, which fills the cache of compiled programs.

    Args:
      source: A name of the zoo, a file or a folder.
      prompt_tokens: How many the prompt has.
      new_tokens: How many are chosen.
      repeats: How many processes each median is of.
      progress: Whether a bar is shown on stderr.
      run: As ``run_once``, which it replaces in tests.

    Returns:
      The table, and every figure.

    Raises:
      OSError: A process could not be started.
      ValueError: One failed, or this system does not tell what a process held.
    """
    sizes = (str(prompt_tokens), str(new_tokens))
    orders = {None: ("jax",)} | {
        form: ("generate", source, form.dtype, form.quantize, *sizes) for form in FORMS
    }
    told: dict[Form | None, list[Mapping[str, Any]]] = {form: [] for form in orders}
    total = (1 + repeats) * len(orders)
    with progress_bar(total, "process", is_shown=progress) as bar:
        for repeat in range(1 + repeats):
            for form, words in orders.items():
                bar.set_description(form.name if form else "jax alone")
                one = run(words)
                if one["peak_bytes"] is None:
                    raise ValueError("this system does not tell what a process held")
                told[form] += [one] if repeat else []
                bar.update()
    alone = statistics.median(one["peak_bytes"] for one in told.pop(None))
    results = [_result(form, ones, alone) for form, ones in told.items() if form]
    settings = {
        "model": source,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
    }
    return Findings(
        title=f"{source}: the most memory that a process holds to load it and generate "
        f"{new_tokens} tokens after {prompt_tokens}, medians of {repeats}",
        columns=COLUMNS,
        rows=tuple(_rows(results)),
        notes=(
            f"over jax alone: less the {alone / 1e6:,.0f} MB of a process that imports "
            "jax and runs one small program",
            "the ratio is to the bytes of weights and cache; programs were compiled by "
            "a process before",
        ),
        data={
            "command": command("memory", settings),
            "settings": settings,
            "jax_alone_bytes": alone,
            "forms": results,
        },
    )


def _compiled_before() -> dict[str, str]:
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.02",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _result(
    form: Form, told: Sequence[Mapping[str, Any]], alone: float
) -> dict[str, Any]:
    weights, cache = told[0]["weight_bytes"], told[0]["cache_bytes"]
    peak = statistics.median(one["peak_bytes"] for one in told) - alone
    return {
        "form": form.name,
        "weight_bytes": weights,
        "cache_bytes": cache,
        "peak_over_jax_bytes": peak,
        "peak_runs": [one["peak_bytes"] for one in told],
        "ratio": peak / (weights + cache),
    }


def _rows(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for result in results:
        sizes = ("weight_bytes", "cache_bytes", "peak_over_jax_bytes")
        yield (
            result["form"],
            *(f"{result[size] / 1e6:,.1f} MB" for size in sizes),
            f"{result['ratio']:.2f}x",
        )
