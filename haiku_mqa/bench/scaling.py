"""Weak and strong scaling of training, over one process and two, each on its core."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from haiku_mqa.bench.bandwidth import cores, load_remarks
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.joined import Joined
from haiku_mqa.bench.turns import take_turns
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import build
from haiku_mqa.planning import Device, make_plan
from haiku_mqa.sharding import mesh_sizes

COLUMNS = (
    "scaling",
    "processes",
    "mesh",
    "rows a process",
    "sent",
    "ms a step",
    "speed-up",
    "efficiency",
    "at best",
    "binds",
)
MESHES = ("data=2", "fsdp=2", "tensor=2")
# Llama's shape, with one KV head; of few layers, since a core compiles alone.
SHAPE = DecoderConfig(
    vocab_size=4096, num_layers=2, num_heads=8, d_model=512, d_ff=1536, max_length=256
)
_PRODUCT = 1024  # rows of the matrices that are multiplied
_REDUCED = 5  # times; the fastest counts, as of every limit


class Case(NamedTuple):
    """Processes that train together.

    Attributes:
      scaling: ``"alone"``; ``"strong"``, as many rows as alone on more processes; or
        ``"weak"``, as many on each.
      processes: How many.
      mesh: What lies where.
      rows: Of a batch, in all of them together.
    """

    scaling: str
    processes: int
    mesh: str
    rows: int

    @property
    def name(self) -> str:
        """As a bar shows it."""
        return f"{self.scaling} {self.mesh}"


class Limits(NamedTuple):
    """What was measured beside a run of every case.

    Attributes:
      cores: Of one process and of two at once: operations and bytes a second of a core.
      reduce_seconds: Of two processes to add up arrays as large as the parameters.
    """

    cores: Mapping[int, Mapping[str, float]]
    reduce_seconds: float


def cases(rows: int, meshes: Sequence[str] = MESHES) -> list[Case]:
    """Returns what is run.

    Args:
      rows: Of one process alone.
      meshes: Of two.

    Example:
      >>> [case.rows for case in cases(8)]
      [8, 8, 16, 8, 16, 8, 16]
    """
    alone = Case("alone", 1, "data=1", rows)
    kinds = (("strong", rows), ("weak", 2 * rows))
    return [alone, *(Case(kind, 2, m, n) for m in meshes for kind, n in kinds)]


def run_scaling(
    *,
    rows: int = 4,
    steps: int = 1,
    repeats: int = 5,
    shape: DecoderConfig = SHAPE,
    meshes: Sequence[str] = MESHES,
    product: int = _PRODUCT,
    progress: bool = False,
    start: Callable[[int, Mapping[str, Any]], Joined] = Joined,
) -> Findings:
    """Trains with one process and with two, in turn.

    Args:
      rows: Of one process alone; two get as many together, and twice as many.
      steps: Of each run.
      repeats: How many runs each median is of.
      shape: Of the model; rows are as long as its longest context.
      meshes: Of two processes.
      product: Rows of the matrices that are multiplied to measure a core.
      progress: Whether a bar is shown on stderr.
      start: As ``Joined``, which it replaces in tests.

    Returns:
      The table, and every figure.

    Raises:
      OSError: A process could not be started.
      ValueError: One failed; the message has its last line.
    """
    remarks = load_remarks()
    parameters = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(build(shape).param_shapes)
    )
    asked = cases(rows, meshes)
    settings = {"config": shape.to_dict(), "context": shape.max_length}
    with contextlib.ExitStack() as stack:
        groups = {}
        for count in (1, 2):
            groups[count] = start(count, settings)
            stack.callback(groups[count].close)

        def train(case: Case, steps: int) -> dict[str, Any]:
            words = {"mesh": case.mesh, "rows": case.rows, "steps": steps}
            return groups[case.processes].ask("train", **words)[0]

        def measure() -> Limits:
            told = groups[2].ask("reduce", count=parameters, times=_REDUCED)
            return Limits(
                {n: _slower(groups[n].ask("limits", size=product)) for n in groups},
                max(min(one["seconds"]) for one in told),
            )

        turns = take_turns(
            asked,
            [steps],
            train,
            repeats=repeats,
            measure=measure,
            progress=progress,
        )
    reduced = 4 * parameters  # of two, each sends the other as much as there is
    devices = {count: _device(count, turns.measured, reduced) for count in groups}
    results = [
        _result(case, shape, runs, first["loss"], devices[case.processes])
        for case, runs, first in zip(asked, turns.runs[0], turns.first[0], strict=True)
    ]
    two = devices[2]
    return Findings(
        title=f"{parameters:,} parameters, rows of {shape.max_length} tokens, AdamW, "
        f"float32; each process on a core, medians of {repeats} runs of {steps} steps",
        columns=COLUMNS,
        rows=(*_rows(results), _row_of_network(reduced, two)),
        notes=(
            "strong: as many rows as alone; weak: as many for each process, and with "
            "tensor=2 all of them read all rows",
            "sent: by each process in a step, as the plan has it; at best: what the "
            "plan's roofline has for such cores and such a network",
            f"a core multiplies at {devices[1].compute / 1e9:.1f} GFLOP/s while the "
            f"other rests, at {two.compute / 1e9:.1f} while both do; it reads "
            f"{devices[1].bandwidth / 1e9:.1f} and {two.bandwidth / 1e9:.1f} GB/s",
            "the network is loopback: both processes copy, on the cores that compute",
            *(["the processes share a core"] if cores() < 2 else []),
            *remarks,
        ),
        data={
            "command": command(
                "scaling", {"rows": rows, "steps": steps, "repeats": repeats}
            ),
            "settings": {"rows": rows, "steps": steps, "repeats": repeats},
            "model": shape.to_dict(),
            "parameters": parameters,
            "reduced_bytes": reduced,
            "reduce_seconds_runs": [each.reduce_seconds for each in turns.measured],
            "core_runs": [each.cores for each in turns.measured],
            "cases": results,
        },
    )


def _slower(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns what each of several cores can do at least."""
    return {name: min(one[name] for one in told) for name in told[0]}


def _device(count: int, measured: Sequence[Limits], reduced: int) -> Device:
    def median(name: str) -> float:
        return statistics.median(each.cores[count][name] for each in measured)

    network = reduced / statistics.median(each.reduce_seconds for each in measured)
    return Device(
        name="a core",
        memory=0,
        compute=median("products"),
        bandwidth=median("memory"),
        network=network,
    )


def _result(
    case: Case,
    shape: DecoderConfig,
    runs: Sequence[Mapping[str, Any]],
    loss: float,
    device: Device,
) -> dict[str, Any]:
    plan = make_plan(
        shape,
        case.mesh,
        device,
        batch=case.rows,
        context=shape.max_length,
        stages=("train",),
    )
    [stage] = plan.stages
    seconds = [statistics.median(run["seconds"]) for run in runs]
    sizes = mesh_sizes(case.mesh)
    return {
        **case._asdict(),
        "rows_of_a_process": case.rows // (sizes["data"] * sizes["fsdp"]),
        "loss_after_first_run": loss,
        "seconds_runs": seconds,
        "seconds": statistics.median(seconds),
        "sent_bytes": stage.sent,
        "at_best": {
            "compute": stage.compute,
            "memory": stage.memory,
            "network": stage.network,
        },
        "seconds_at_best": stage.seconds,
        "binds": stage.binds,
    }


def speed_up(result: Mapping[str, Any], alone: Mapping[str, Any]) -> float:
    """Returns how many times as many rows a second a case trains on as one process.

    Args:
      result: Of the case.
      alone: Of one process.

    Example:
      >>> speed_up({"rows": 16, "seconds": 2.0}, {"rows": 8, "seconds": 1.5})
      1.5
    """
    return (result["rows"] / result["seconds"]) / (alone["rows"] / alone["seconds"])


def _rows(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    alone = results[0]
    for result in results:
        faster = speed_up(result, alone)
        yield (
            result["scaling"],
            str(result["processes"]),
            result["mesh"],
            str(result["rows_of_a_process"]),
            f"{result['sent_bytes'] / 1e6:,.1f} MB",
            spread_ms(result["seconds_runs"]),
            "" if result is alone else f"{faster:.2f}x",
            "" if result is alone else f"{faster / result['processes']:.0%}",
            f"{1e3 * result['seconds_at_best']:,.0f} ms",
            result["binds"],
        )


def spread_ms(seconds: Sequence[float]) -> str:
    """Returns a median in milliseconds, and the least and the most of what it is of.

    Args:
      seconds: At least one.

    Example:
      >>> spread_ms([0.2, 0.21, 0.25])
      '210 (200-250)'
    """
    median, least, most = statistics.median(seconds), min(seconds), max(seconds)
    return f"{1e3 * median:,.0f} ({1e3 * least:,.0f}-{1e3 * most:,.0f})"


def _row_of_network(reduced: int, device: Device) -> tuple[str, ...]:
    seconds = reduced / device.network
    return (
        *("all-reduce alone", "2", "", "", f"{reduced / 1e6:,.1f} MB"),
        *(f"{1e3 * seconds:,.0f}", "", "", f"{device.network / 1e9:.2f} GB/s", ""),
    )
