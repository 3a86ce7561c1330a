"""What the benchmarks that train have in common: options, and how results are told."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json`` and ``--markdown``."""
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write every figure to a file too"
    )
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the table alone, in Markdown, as the documentation has it",
    )


def check_outputs(paths: Sequence[Path | None]) -> None:
    """Raises ``OSError`` before the work where a file could not be written after it.

    Args:
      paths: Of the files; ``None`` is passed over.

    Raises:
      OSError: One cannot be written.
    """
    for path in paths:
        if path is not None:
            check_writable(path)


def tell(found: Findings, args: argparse.Namespace) -> None:
    """Prints what was found, and writes it where ``--json`` says.

    Args:
      found: The findings.
      args: As parsed, with the options of ``add_output``.

    Raises:
      OSError: The file cannot be written.
    """
    if args.json is not None:
        with replacing(args.json) as part:
            part.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    if args.markdown:
        print(found.markdown())
        return
    numbers = found.columns[1:]
    print(f"{found.title}\n\n{table(found.columns, found.rows, numbers)}\n")
    print("\n".join(found.notes))
