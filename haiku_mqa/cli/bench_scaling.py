"""``haiku-mqa bench scaling``: what a second process brings, and what it costs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._devices import have_devices
from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Train a decoder of 8.0 million parameters (Llama's shape with one KV head, rows of 256
tokens, AdamW, float32) with one process and with two that jax.distributed joins on
loopback, each held to a core of its own, over data=2, fsdp=2 and tensor=2: with as many
rows as one process has (strong scaling), and with twice as many (weak). Prints medians
beside the time that 'haiku-mqa plan' has for such cores and such a network, both
measured in the same run. Compiling and the first run of each are not timed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench scaling
  haiku-mqa bench scaling --rows 8 --repeats 11 --json scaling.json
"""


def _measure(args: argparse.Namespace) -> Findings:
    prepare_jax()
    have_devices(2)  # that plans are compiled for
    from haiku_mqa.bench import scaling

    return scaling.run_scaling(
        rows=args.rows, steps=args.steps, repeats=args.repeats, progress=True
    )


BENCH = Bench(
    name="scaling",
    help="measure training over one process and two, beside the plan's times",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    numbers=(
        ("--rows", 2, 4, "rows of one process alone; even"),
        ("--steps", 1, 1, "how many steps each run makes"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    ),
)
