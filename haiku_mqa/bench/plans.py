"""What a plan says of memory, beside the memory that a process was seen to hold."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.processes import output
from haiku_mqa.bench.scale import progress_bar
from haiku_mqa.config import DecoderConfig
from haiku_mqa.planning import compiled_work

COLUMNS = (
    "stage",
    "mesh",
    "arguments",
    "temporaries",
    "results",
    "plan",
    "measured",
    "measured is",
)
# 43 million parameters: large enough that what a process holds besides is little.
SHAPE = DecoderConfig(
    vocab_size=4096, num_layers=6, num_heads=12, d_model=768, d_ff=2304, max_length=1024
)

_SCRIPT = Path(__file__).with_name("plan_script.py")


class Case(NamedTuple):
    """What is planned, and then done.

    Attributes:
      stage: Which.
      mesh: Sizes of axes.
      devices: How many they are.
      batch: B, rows.
      context: Tokens of each row.
    """

    stage: Any
    mesh: str
    devices: int
    batch: int
    context: int


_MESHES = (("data=1", 1), ("data=4", 4), ("fsdp=4", 4), ("tensor=4", 4))
CASES = tuple(
    Case(stage, mesh, devices, batch, context)
    for stage, batch, context in (("train", 8, 128), ("decode", 64, 1024))
    for mesh, devices in _MESHES
)


def run_once(words: str) -> Mapping[str, Any]:
    """Runs ``plan_script.py``, and returns what it told of its memory.

    Args:
      words: What it is to do, in JSON.

    Raises:
      OSError: It could not be started.
      ValueError: It failed; the message has its last line.
    """
    # Python puts no folder of this package before the libraries that it imports.
    told = output([sys.executable, "-P", str(_SCRIPT), words], "running a stage")
    return json.loads(told)


def run_plans(
    *,
    repeats: int = 3,
    shape: DecoderConfig = SHAPE,
    cases: Sequence[Case] = CASES,
    progress: bool = False,
    run: Callable[[str], Mapping[str, Any]] = run_once,
) -> Findings:
    """Plans, and runs what was planned, each in a process of its own.

    Args:
      repeats: How many processes each median is of.
      shape: Of the model.
      cases: What is planned; as many devices as the largest has must be there.
      progress: Whether a bar is shown on stderr.
      run: As ``run_once``, which it replaces in tests.

    Returns:
      The table, and every figure.

    Raises:
      OSError: A process could not be started.
      ValueError: One failed; the message has its last line.
    """
    results = []
    with progress_bar(repeats * len(cases), "process", is_shown=progress) as bar:
        for case in cases:
            bar.set_description(f"{case.stage} {case.mesh}")
            words = json.dumps({"config": shape.to_dict(), **case._asdict()})
            told = []
            for _ in range(repeats):
                told.append(run(words))
                bar.update()
            results.append(_result(case, shape, told))
    settings = {"repeats": repeats}
    return Findings(
        title=f"{shape.num_layers} layers of width {shape.d_model}: bytes of all "
        f"devices together, planned and held, medians of {repeats} processes",
        columns=COLUMNS,
        rows=tuple(_rows(results)),
        notes=(
            f"train: {_sizes(cases, 'train')}; decode: {_sizes(cases, 'decode')} "
            "in the cache",
            "measured: the most memory that a process held while it made the arguments "
            "and ran the stage once, over what it held before, once all was compiled",
        ),
        data={
            "command": command("plan", settings),
            "settings": settings,
            "model": shape.to_dict(),
            "cases": results,
        },
    )


def _sizes(cases: Sequence[Case], stage: str) -> str:
    found = dict.fromkeys(
        f"{case.batch} rows of {case.context:,} tokens"
        for case in cases
        if case.stage == stage
    )
    return ", ".join(found)


def _result(
    case: Case, shape: DecoderConfig, told: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    work = compiled_work(
        shape, case.mesh, case.stage, batch=case.batch, context=case.context
    )
    peak = statistics.median(one["peak"] for one in told)
    return {
        **case._asdict(),
        "argument_bytes": case.devices * work.arguments,
        "temporary_bytes": case.devices * work.temporaries,
        "result_bytes": case.devices * work.results,
        "planned_bytes": case.devices * work.held,
        "measured_bytes": peak,
        "measured_runs": [one["peak"] for one in told],
        "ratio": peak / (case.devices * work.held),
    }


def _rows(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    kinds = ("argument", "temporary", "result", "planned", "measured")
    for result in results:
        sizes = (f"{result[f'{kind}_bytes'] / 1e6:,.1f} MB" for kind in kinds)
        yield result["stage"], result["mesh"], *sizes, f"{result['ratio']:.3f}x"
