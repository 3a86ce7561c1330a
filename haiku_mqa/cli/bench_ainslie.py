"""``haiku-mqa bench ainslie``: a multi-head model converted to fewer KV heads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _findings, _options

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Repeat, at a small scale, what Ainslie et al. 2023 (GQA) found: train one multi-head
model, give it fewer key/value heads by each method of convert_heads, train each on for
2.5, 5 and 10 % of the steps, and decode with each number of heads in turn from full
caches.
"""

_EPILOG = """\
examples:
  haiku-mqa bench ainslie
  haiku-mqa bench ainslie --plot ainslie.png --json ainslie.json
"""


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``ainslie``."""
    parser = _options.add_verb(
        verbs,
        "ainslie",
        help="convert a multi-head model to fewer KV heads and train it on",
        run=run_ainslie,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _findings.add_numbers(
        parser,
        ("--steps", 1, 1500, "how many steps the multi-head model is trained for"),
        ("--batch-size", 1, 64, "how many rows are decoded at once"),
        ("--context", 1, 512, "how many tokens each row has read before"),
        ("--repeats", 1, 5, "how many runs each median of decoding is of"),
    )
    _options.add_seed(parser, "all that is drawn")
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_ainslie(args: argparse.Namespace) -> int:
    """Prints losses and the cost of decoding, and draws them.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: The picture's ending is unknown.
      OSError: A file cannot be written.
    """

    def measure() -> Findings:
        from haiku_mqa.bench import ainslie

        return ainslie.run_ainslie(
            steps=args.steps,
            seed=args.seed,
            batch_size=args.batch_size,
            context=args.context,
            repeats=args.repeats,
            progress=True,
        )

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_ainslie import plot_ainslie

        plot_ainslie(data, path)

    return _findings.run(args, measure, plot)
