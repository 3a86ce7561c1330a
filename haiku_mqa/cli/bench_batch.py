"""``haiku-mqa bench batch``: many streams of text at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._findings import Bench, check_room
from haiku_mqa.cli._models import load_or_draw

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_DESCRIPTION = """\
Continue more and more prompts of random tokens together, greedily, and print medians
of tokens per second of all rows. Where torch and transformers are installed,
transformers does the same with the same weights, in float32 and bfloat16, taking turns
with this package. The limit is set by memory's speed where rows are few and by matrix
products where they are many; both are measured in the same run. Compiling and the
first run of each program are not timed.
"""

_EPILOG = """\
examples:
  haiku-mqa bench batch
  haiku-mqa bench batch --batch-sizes 1,8,64 --plot batch.png
"""


def _measure(args: argparse.Namespace) -> Findings:
    loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
    check_room(args, loaded.model.config.max_length)
    from haiku_mqa.bench import batch

    return batch.run_batch(
        loaded.model,
        loaded.params,
        name=args.model,
        batch_sizes=args.batch_sizes,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        seed=args.seed,
        torch_python=args.torch_python,
        progress=True,
    )


BENCH = Bench(
    name="batch",
    help="measure tokens per second of many rows, beside transformers",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    measure=_measure,
    plot="haiku_mqa.bench.plot_generation:plot_batch",
    has_model=True,
    sizes=(("--batch-sizes", "1,2,4,8,16,32", "how many rows go together"),),
    numbers=(
        ("--prompt-tokens", 1, 128, "length of each prompt"),
        ("--new-tokens", 2, 64, "how many tokens each row gets"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    ),
    seed="the prompts, and of weights for a model that has none",
    peers="torch",
)
