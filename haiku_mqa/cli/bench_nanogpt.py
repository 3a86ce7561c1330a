"""``haiku-mqa bench nanogpt``: nanoGPT's recipe for a CPU, beside nanoGPT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Train by the recipe nanogpt-cpu with several seeds, each run in a process of its own
that keeps no compiled program, and print the validation loss over the whole split and
the seconds of the process, compilation and evaluation included. Beside it, taking
turns, runs nanoGPT's own train.py with its README's settings for a CPU, if a checkout
is named. It is copied, gets this package's corpus, and is not changed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench nanogpt
  haiku-mqa bench nanogpt --nanogpt ../nanoGPT --nanogpt-python ../torch/bin/python
"""


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nanogpt", metavar="FOLDER", type=Path, help="a checkout of nanoGPT"
    )
    parser.add_argument(
        "--nanogpt-python",
        metavar="PYTHON",
        help="a Python that has torch, if not this",
    )


def _measure(args: argparse.Namespace) -> Findings:
    from haiku_mqa.bench import nanogpt

    return nanogpt.run_nanogpt(
        seeds=args.seeds,
        steps=args.steps,
        nanogpt=args.nanogpt,
        nanogpt_python=args.nanogpt_python,
        progress=True,
    )


BENCH = Bench(
    name="nanogpt",
    help="train by nanoGPT's recipe, beside nanoGPT",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    numbers=(
        ("--seeds", 1, 3, "how many runs each program gets"),
        ("--steps", 1, 2000, "how many steps each run makes"),
    ),
    add_own=_add_own,
)
