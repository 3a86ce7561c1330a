"""``haiku-mqa bench startup``: from the start of a process to its first token."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _findings, _options
from haiku_mqa.cli._files import check_argument
from haiku_mqa.cli._models import load_model

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_PROMPT = "The capital of France is"

_DESCRIPTION = f"""\
Start 'haiku-mqa generate' in a process of its own, again and again, and print the
median of the seconds to its first token, with programs compiled by a start before:
for the model in the package ({_options.PACKED_MODEL}), and for another. Beside it the
most memory that the process held, over the bytes of weights and cache. Where torch and
transformers are installed, transformers loads the same weights from a folder of its
own kind and chooses a token too, taking turns with this package.
"""

_EPILOG = """\
examples:
  haiku-mqa bench startup
  haiku-mqa bench startup --model runs/first --plot startup.png
"""


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``startup``."""
    parser = _options.add_verb(
        verbs,
        "startup",
        help="measure the seconds from a start to the first token, and memory",
        run=run_startup,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        default=_PROMPT,
        help="what is continued (default: %(default)s)",
    )
    _findings.add_numbers(
        parser, ("--repeats", 1, 5, "how many starts each median is of")
    )
    _options.add_dtype(parser)
    _findings.add_peers(parser, has_gguf=False)
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_startup(args: argparse.Namespace) -> int:
    """Prints how long starts take and what memory they need, and draws it.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, it has no tokenizer, or the picture's
        ending is unknown.
      OSError: A file cannot be written.
    """
    check_argument("--prompt", args.prompt)
    if not args.prompt:
        raise ValueError("--prompt must hold some text, and is empty")

    def measure() -> Findings:
        names = dict.fromkeys((_options.PACKED_MODEL, args.model))
        models = [(name, load_model(name, dtype=args.dtype)) for name in names]
        from haiku_mqa.bench import startup

        return startup.run_startup(
            models,
            prompt=args.prompt,
            repeats=args.repeats,
            torch_python=args.torch_python,
            progress=True,
        )

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_generation import plot_startup

        plot_startup(data, path)

    return _findings.run(args, measure, plot)
