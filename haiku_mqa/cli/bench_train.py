"""``haiku-mqa bench train``: how fast a model trains, beside torch."""

from __future__ import annotations

import argparse
from typing import Any

from haiku_mqa.cli import _findings, _options

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


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``train``."""
    parser = _options.add_verb(
        verbs,
        "train",
        help="measure tokens trained on per second, beside torch",
        run=run_train,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _findings.add_numbers(
        parser,
        ("--steps", 1, 5, "how many steps each run makes"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    )
    parser.add_argument(
        "--torch-python", metavar="PYTHON", help="a Python that has torch, if not this"
    )
    _findings.add_output(parser)


def run_train(args: argparse.Namespace) -> int:
    """Prints how many tokens per second are trained on.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      OSError: The JSON file cannot be written.
    """
    _findings.check_outputs([args.json])
    from haiku_mqa.bench.training_speed import run_training_speed
    from haiku_mqa.training import keep_freed_memory

    keep_freed_memory()  # as the verb train does

    found = run_training_speed(
        steps=args.steps,
        repeats=args.repeats,
        torch_python=args.torch_python,
        progress=True,
    )
    _findings.tell(found, args)
    return 0
