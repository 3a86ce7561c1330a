"""``haiku-mqa bench train``: how fast a model trains, beside torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Train a decoder of 6.7 million parameters (Llama's shape with one KV head, 8 rows of
256 tokens, AdamW, float32) and print the medians of tokens per second. Where torch is
installed, the same model trains there too, from the same weights and on the same
batches, as it is and through torch.compile, taking turns with this package. The
machine's matrix products, measured in the same run, are what is at best to be had.
Compiling and the first run of each program are not timed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench train
  haiku-mqa bench train --torch-python ../torch/bin/python --json train.json
"""


def _measure(args: argparse.Namespace) -> Findings:
    from haiku_mqa.bench import training_speed

    return training_speed.run_training_speed(
        steps=args.steps,
        repeats=args.repeats,
        torch_python=args.torch_python,
        progress=True,
    )


BENCH = Bench(
    name="train",
    help="measure tokens trained on per second, beside torch",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    numbers=(
        ("--steps", 1, 5, "how many steps each run makes"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    ),
    peers="torch",
)
