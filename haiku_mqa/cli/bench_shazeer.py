"""``haiku-mqa bench shazeer``: what one key/value head costs, and what it saves."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Repeat, at a small scale, what Shazeer 2019 (Fast Transformer Decoding: One Write-Head
is All You Need) found: train decoders of equal size with multi-head and multi-query
attention, and with fewer or smaller heads whose cache is as small, each with several
seeds, and decode with each in turn from full caches.
"""

_EPILOG = """\
examples:
  haiku-mqa bench shazeer
  haiku-mqa bench shazeer --steps 300 --seeds 1 --markdown
"""


def _measure(args: argparse.Namespace) -> Findings:
    from haiku_mqa.bench import shazeer

    return shazeer.run_shazeer(
        steps=args.steps,
        seeds=args.seeds,
        batch_size=args.batch_size,
        context=args.context,
        repeats=args.repeats,
        progress=True,
    )


BENCH = Bench(
    name="shazeer",
    help="hold multi-query attention against multi-head attention",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    numbers=(
        ("--steps", 1, 1000, "how many steps each training run makes"),
        ("--seeds", 1, 3, "how many training runs each model gets"),
        ("--batch-size", 1, 64, "how many rows are decoded at once"),
        ("--context", 1, 512, "how many tokens each row has read before"),
        ("--repeats", 1, 5, "how many runs each median of decoding is of"),
    ),
)
