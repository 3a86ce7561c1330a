"""``haiku-mqa bench accelerator``: how near to its limits a GPU or TPU comes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._findings import Bench

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Measure how fast a GPU or TPU reads its memory and multiplies matrices, and how near to
that a multi-query decoder comes with one stream of text: decode beside the memory's
speed, prefill beside that of products, and attention alone by each implementation. The
decoder has 1.0 billion parameters in bfloat16, drawn on the device. Where torch and
transformers are installed, transformers runs one of the same shape, taking turns.
Every call is waited for; compiling and the first run of each program are not timed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench accelerator
  haiku-mqa bench accelerator --torch-python ../torch/bin/python --json gpu.json
  haiku-mqa bench accelerator --device cpu --preset tiny
"""


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("gpu", "tpu", "cpu"),
        metavar="DEVICE",
        help="gpu, tpu or cpu: what it must run on (default: an accelerator)",
    )
    parser.add_argument(
        "--preset",
        choices=("1b", "tiny"),
        metavar="PRESET",
        default="1b",
        help="1b or tiny: which decoder (default: %(default)s)",
    )


def _measure(args: argparse.Namespace) -> Findings:
    prepare_jax()
    from haiku_mqa.bench import accelerator

    return accelerator.run_accelerator(
        preset=args.preset,
        device=args.device,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        seed=args.seed,
        torch_python=args.torch_python,
        progress=True,
    )


BENCH = Bench(
    name="accelerator",
    help="measure a GPU or TPU, and a decoder of a billion parameters on it",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    numbers=(
        ("--prompt-tokens", 1, 2048, "length of the prompt, of random tokens"),
        ("--new-tokens", 2, 257, "how many tokens each run chooses"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    ),
    seed="weights and prompt",
    peers="torch",
    add_own=_add_own,
)
