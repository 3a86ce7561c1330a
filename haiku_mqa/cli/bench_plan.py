"""``haiku-mqa bench plan``: what a plan says of memory, held to what is seen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._devices import have_devices
from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Plan what a step of training and one of decoding hold, for a decoder of 20 million
parameters on one virtual device and on four, as 'haiku-mqa plan' does; run each in a
process of its own, and print the most memory that it held beside the plan's.
"""

_EPILOG = """\
examples:
  haiku-mqa bench plan
  haiku-mqa bench plan --repeats 1 --markdown
"""


def _measure(args: argparse.Namespace) -> Findings:
    prepare_jax()
    from haiku_mqa.bench import plans

    have_devices(max(case.devices for case in plans.CASES))
    return plans.run_plans(repeats=args.repeats, progress=True)


BENCH = Bench(
    name="plan",
    help="measure the memory that a plan tells of",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    numbers=(("--repeats", 1, 3, "how many processes each median is of"),),
)
