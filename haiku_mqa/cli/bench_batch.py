"""``haiku-mqa bench batch``: many streams of text at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _findings, _options
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


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``batch``."""
    parser = _options.add_verb(
        verbs,
        "batch",
        help="measure tokens per second of many rows, beside transformers",
        run=run_batch,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    _findings.add_sizes(
        parser, "--batch-sizes", "1,2,4,8,16,32", "how many rows go together"
    )
    _findings.add_numbers(
        parser,
        ("--prompt-tokens", 1, 128, "length of each prompt"),
        ("--new-tokens", 2, 64, "how many tokens each row gets"),
        ("--repeats", 1, 5, "how many runs each median is of"),
    )
    _options.add_dtype(parser)
    _options.add_seed(parser, "the prompts, and of weights for a model that has none")
    _findings.add_peers(parser, has_gguf=False)
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_batch(args: argparse.Namespace) -> int:
    """Prints how fast many rows are continued, and draws it.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, its context is too short, or the picture's
        ending is unknown.
      OSError: A file cannot be written.
    """

    def measure() -> Findings:
        loaded = load_or_draw(args.model, dtype=args.dtype, seed=args.seed)
        _findings.check_room(args, loaded.model.config.max_length)
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

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_generation import plot_batch

        plot_batch(data, path)

    return _findings.run(args, measure, plot)
