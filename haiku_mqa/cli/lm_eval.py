"""``haiku-mqa lm-eval``: lm-evaluation-harness, with a model of this package."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any
from unittest import mock

from haiku_mqa.cli import _options
from haiku_mqa.cli._failures import MissingExtra
from haiku_mqa.cli._models import check_name

_DESCRIPTION = """\
Measure a model by tasks of lm-evaluation-harness, as its own command does with

  lm-eval run --model haiku-mqa --model_args pretrained=NAME

which works where the harness looks for models of other packages; this works with
releases too that do not. What stands after -- goes to the harness as it is.
"""

_EPILOG = """\
examples:
  haiku-mqa lm-eval --model smollm2-135m --tasks arc_easy
  haiku-mqa lm-eval --tasks mine -- --include_path tasks --limit 100
  haiku-mqa lm-eval --tasks mine -- --output_path results --log_samples
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``lm-eval``."""
    parser = _options.add_verb(
        verbs,
        "lm-eval",
        help="measure a model by tasks of lm-evaluation-harness",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    parser.add_argument(
        "--tasks", metavar="NAMES", required=True, help="with commas between"
    )
    parser.add_argument(
        "--batch-size",
        type=_options.whole(1),
        metavar="B",
        default=16,
        help="how many texts are read at once (default: %(default)s)",
    )
    _options.add_dtype(parser)
    _options.add_quantize(parser)
    parser.add_argument(
        "words", metavar="-- WORDS", nargs="*", help="the harness's own options"
    )


def run(args: argparse.Namespace) -> int:
    """Has the harness measure a model.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, or its path cannot be told to the harness.
      MissingExtra: The harness is not installed.
    """
    check_name(args.model)
    if "," in args.model:
        raise ValueError(
            f"--model must have no comma in it for the harness, got {args.model!r}"
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval", "lm-eval")
    from lm_eval.__main__ import cli_evaluate

    # Whoever imports it makes it known to the harness.
    from haiku_mqa.hosts import lm_eval_model  # noqa: F401

    told = {"pretrained": args.model, "dtype": args.dtype, "quantize": args.quantize}
    told = {name: value for name, value in told.items() if value is not None}
    words = [
        *("lm-eval", "run", "--model", "haiku-mqa", "--tasks", args.tasks),
        *("--model_args", ",".join(f"{name}={value}" for name, value in told.items())),
        *("--batch_size", str(args.batch_size)),
        *args.words,
    ]
    with mock.patch.object(sys, "argv", words):  # which is where it reads them
        cli_evaluate()
    return 0
