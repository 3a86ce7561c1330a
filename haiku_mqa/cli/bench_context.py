"""``haiku-mqa bench context``: what a token costs as the cache fills."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _findings, _options
from haiku_mqa.cli._models import prepare_jax

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Decode one stream of text from fuller and fuller caches, with multi-head, grouped and
multi-query attention in a decoder of one size (63 million parameters, 12 heads of 64,
drawn weights), and print the median time of a token beside the cache's bytes and
the limit that memory sets.
"""

_EPILOG = """\
examples:
  haiku-mqa bench context
  haiku-mqa bench context --contexts 512,2048 --plot context.png
"""


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``context``."""
    parser = _options.add_verb(
        verbs,
        "context",
        help="measure what a token costs as the cache fills, by kind of attention",
        run=run_context,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _findings.add_sizes(
        parser,
        "--contexts",
        "128,1024,4096,8192",
        "how many tokens are in the cache",
    )
    _findings.add_numbers(
        parser, ("--repeats", 1, 5, "how many runs each median is of")
    )
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_context(args: argparse.Namespace) -> int:
    """Prints what a token costs, and draws it.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: The picture's ending is unknown.
      OSError: A file cannot be written.
    """

    def measure() -> Findings:
        prepare_jax()
        from haiku_mqa.bench import context

        return context.run_context(
            contexts=args.contexts, repeats=args.repeats, progress=True
        )

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_generation import plot_context

        plot_context(data, path)

    return _findings.run(args, measure, plot)
