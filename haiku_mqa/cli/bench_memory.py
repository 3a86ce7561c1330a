"""``haiku-mqa bench memory``: the most that a process holds to generate."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _findings, _options
from haiku_mqa.cli._models import check_name

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Load a model and generate from it, in a process of its own for each of float32, bfloat16
and int8, and print the most memory that the process held, over that of a process which
imports jax and runs one small program; and its ratio to the bytes of weights and cache.
"""

_EPILOG = """\
examples:
  haiku-mqa bench memory --model smollm2-135m
  haiku-mqa bench memory --model runs/first --plot memory.png
"""


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``memory``."""
    parser = _options.add_verb(
        verbs,
        "memory",
        help="measure the most memory that loading and generating hold",
        run=run_memory,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    _findings.add_numbers(
        parser,
        ("--prompt-tokens", 1, 128, "length of the prompt"),
        ("--new-tokens", 1, 64, "how many tokens are chosen"),
        ("--repeats", 1, 3, "how many processes each median is of"),
    )
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_memory(args: argparse.Namespace) -> int:
    """Prints what processes held, and draws it.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, its context is too short, or the picture's
        ending is unknown.
      OSError: A file cannot be written.
    """
    check_name(args.model)

    def measure() -> Findings:
        from haiku_mqa.bench import memory

        return memory.run_memory(
            args.model,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            progress=True,
        )

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_generation import plot_memory

        plot_memory(data, path)

    return _findings.run(args, measure, plot)
