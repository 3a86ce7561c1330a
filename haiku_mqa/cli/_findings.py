"""What the benchmarks that train have in common: options, and how results are told."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa._heap import keep_freed_memory
from haiku_mqa.cli import _options
from haiku_mqa.cli._files import check_writable, replacing
from haiku_mqa.cli._screen import table

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings


def add_numbers(
    parser: argparse.ArgumentParser, *numbers: tuple[str, int, int, str]
) -> None:
    """Adds options that are whole numbers.

    Args:
      parser: The verb's.
      *numbers: Name, the least allowed, the default, and what it is.
    """
    for option, least, default, text in numbers:
        parser.add_argument(
            option,
            type=_options.whole(least),
            metavar="N",
            default=default,
            help=f"{text} (default: %(default)s)",
        )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write every figure to a file too"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json`` and ``--markdown``."""
    add_json(parser)
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the table alone, in Markdown, as the documentation has it",
    )


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures to the file that ``--json`` names.

    Args:
      path: The file; written whole or not at all.
      figures: Plain data.

    Raises:
      OSError: It cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(figures, indent=2) + "\n")


def run(
    args: argparse.Namespace, measure: Callable[[], Findings], *more: Path | None
) -> int:
    """Measures, prints what was found, and writes it where ``--json`` says.

    Args:
      args: As parsed, with the options of ``add_output``.
      measure: What finds it; called when this process is ready to train.
      *more: Other files that it writes; ``None`` is passed over.

    Returns:
      0.

    Raises:
      OSError: A file cannot be written. It is told before the work.
    """
    for path in (args.json, *more):
        if path is not None:
            check_writable(path)
    keep_freed_memory()  # as the verb train does
    found = measure()
    if args.json is not None:
        write_json(args.json, found.to_dict())
    if args.markdown:
        print(found.markdown())
        return 0
    numbers = found.columns[1:]
    print(f"{found.title}\n\n{table(found.columns, found.rows, numbers)}\n")
    print("\n".join(found.notes))
    return 0
