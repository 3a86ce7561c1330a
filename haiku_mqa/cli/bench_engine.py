"""``haiku-mqa bench engine``: requests together, and one after another."""

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
Have many requests of random tokens, of many lengths, come at once, and continue them
greedily: by an engine, whose slots they join and leave, and by a call for each in
turn. Prints medians of the whole time, of new tokens per second, and of how long a
request waits for its first and its last token. Both are compiled before anything is
timed, and every repeat has other prompts, so that nothing is known from the one before.
"""

_EPILOG = """\
examples:
  haiku-mqa bench engine
  haiku-mqa bench engine --slots 8 --requests 64 --model shakespeare-mqa
  haiku-mqa bench engine --plot engine.png --json engine.json
"""


def add_parser(verbs: Any) -> None:
    """Adds ``bench``'s verb ``engine``."""
    parser = _options.add_verb(
        verbs,
        "engine",
        help="measure requests continued together against one by one",
        run=run_engine,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    _findings.add_numbers(
        parser,
        ("--requests", 1, 24, "how many requests come at once"),
        ("--slots", 1, 16, "how many of them the engine continues at once"),
        ("--prompt-tokens", 1, 16, "length of the longest prompt"),
        ("--new-tokens", 2, 48, "how many tokens a request gets at most"),
        ("--repeats", 1, 3, "how many runs each median is of"),
    )
    _options.add_dtype(parser)
    _options.add_seed(parser, "the requests, and of weights for a model that has none")
    _findings.add_plot(parser)
    _findings.add_output(parser)


def run_engine(args: argparse.Namespace) -> int:
    """Prints how long requests take, together and one by one, and draws it.

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
        from haiku_mqa.bench import engine

        return engine.run_engine(
            loaded.model,
            loaded.params,
            name=args.model,
            requests=args.requests,
            slots=args.slots,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            seed=args.seed,
            progress=True,
        )

    def plot(data: Mapping[str, Any], path: Path) -> None:
        from haiku_mqa.bench.plot_engine import plot_engine

        plot_engine(data, path)

    return _findings.run(args, measure, plot)
