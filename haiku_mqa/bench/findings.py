"""What a benchmark found: a table for people, and every figure for programs."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from haiku_mqa.bench.bandwidth import cores

_DISTRIBUTIONS = (
    "haiku-mqa",
    "jax",
    "jaxlib",
    "dm-haiku",
    "optax",
    "numpy",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What a benchmark found.

    Attributes:
      title: One line: what was run.
      columns: Names of the table's columns.
      rows: Its cells.
      notes: Lines that belong below it: what the figures mean, and what was left out.
      data: Every figure, as plain data that JSON can hold.

    Example:
      >>> found = Findings(title="Sums", columns=("terms", "sum"),
      ...     rows=(("1, 2", "3"),), notes=("Whole numbers.",), data={"sum": 3})
      >>> print(found.markdown())
      | terms | sum |
      | --- | --- |
      | 1, 2 | 3 |
      >>> sorted(found.to_dict())
      ['hardware', 'notes', 'sum', 'title', 'versions']
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    data: Mapping[str, Any]

    def markdown(self) -> str:
        """Returns the table in Markdown, as the documentation has it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns every figure, and what they were found on."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "hardware": hardware(),
            "versions": versions(),
            **self.data,
        }


def hardware() -> dict[str, Any]:
    """Returns what this process runs on: the processor, its cores and the memory.

    Example:
      >>> sorted(hardware())
      ['cores', 'cpu', 'device', 'machine', 'memory_bytes']
    """
    return {
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "cores": cores(),
        "machine": platform.machine(),
        "memory_bytes": _memory(),
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of what was computed with.

    Example:
      >>> "jax" in versions()
      True
    """
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


def command(verb: str, settings: Mapping[str, Any]) -> str:
    """Returns the command line that settings stand for, defaults included.

    Args:
      verb: After ``haiku-mqa bench``.
      settings: Names of options, with underscores, to values; ``None`` is left out.

    Example:
      >>> command("shazeer", {"steps": 1000, "batch_size": 64, "plot": None})
      'haiku-mqa bench shazeer --steps 1000 --batch-size 64'
    """
    words = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in settings.items()
        if value is not None
    ]
    return " ".join(["haiku-mqa bench", verb, *words])


def counted(seeds: int) -> str:
    """Returns so many seeds, in words.

    Args:
      seeds: How many.

    Example:
      >>> counted(1), counted(3)
      ('1 seed', '3 seeds')
    """
    return f"{seeds} seed" + ("" if seeds == 1 else "s")


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Returns a mean, and the sample standard deviation where there are several.

    Args:
      values: At least one.
      digits: After the point.

    Example:
      >>> mean_and_spread([1.5, 1.7]), mean_and_spread([1.5])
      ('1.600 ± 0.141', '1.500')
    """
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    squares = sum((value - mean) ** 2 for value in values)
    spread = (squares / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _cpu(table: Path) -> str:
    try:
        lines = table.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return models[0].strip() if models else platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return None
