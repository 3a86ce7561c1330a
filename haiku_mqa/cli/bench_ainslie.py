"""``haiku-mqa bench ainslie``: a multi-head model converted to fewer KV heads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench

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


def _measure(args: argparse.Namespace) -> Findings:
    from haiku_mqa.bench import ainslie

    return ainslie.run_ainslie(
        steps=args.steps,
        seed=args.seed,
        batch_size=args.batch_size,
        context=args.context,
        repeats=args.repeats,
        progress=True,
    )


BENCH = Bench(
    name="ainslie",
    help="convert a multi-head model to fewer KV heads and train it on",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    plot="haiku_mqa.bench.plot_ainslie:plot_ainslie",
    numbers=(
        ("--steps", 1, 1500, "how many steps the multi-head model is trained for"),
        ("--batch-size", 1, 64, "how many rows are decoded at once"),
        ("--context", 1, 512, "how many tokens each row has read before"),
        ("--repeats", 1, 5, "how many runs each median of decoding is of"),
    ),
    seed="all that is drawn",
)
