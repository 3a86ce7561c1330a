"""From the words of a command line to a verb, and from its failure to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from haiku_mqa.cli import (
    _failures,
    attention,
    bench,
    chat,
    convert,
    convert_heads,
    demo,
    eval,
    generate,
    kernels,
    lm_eval,
    plan,
    serve,
    train,
    zoo,
)
from haiku_mqa.cli._options import Parser, add_debug
from haiku_mqa.cli._screen import say

_VERBS = (
    generate,
    chat,
    serve,
    train,
    eval,
    convert,
    convert_heads,
    lm_eval,
    attention,
    demo,
    zoo,
    bench,
    plan,
    kernels,
)

_EPILOG = """\
examples:
  haiku-mqa generate "ROMEO:"
  haiku-mqa generate --chat "Why is the sky blue?"
  haiku-mqa chat
  haiku-mqa serve
  haiku-mqa train --out runs/first
  haiku-mqa attention "The cat sat on the mat" --output attention.png
  haiku-mqa zoo info smollm2-135m

exit codes:
  0 done; 1 a failure (network, disk, damaged file, plugin, broken law);
  2 a mistake on the command line; 130 interrupted; 143 training was terminated

environment:
  HAIKU_MQA_CACHE names the folder for weights and compiled programs
  (default: ~/.cache/haiku_mqa); HAIKU_MQA_KERNELS=off leaves compiled kernels aside
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: The words after the program's name; the process's own if ``None``.

    Returns:
      The exit code: 0 done, 1 a failure, 2 a mistake on the command line, 130
      interrupted, 143 terminated while training.

    Example:
      >>> main(["zoo", "info", "--quick"])
      2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _tolerate_narrow_streams()
    try:
        with warnings.catch_warnings():
            code = _run(words)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _drop_unwritten_output()
        say("interrupted")
        return 130
    except BrokenPipeError:
        _drop_unwritten_output()  # whoever read the output has seen enough
        return 1
    except Exception as error:  # whatever it is, the user gets one line
        _drop_unwritten_output()
        if "--debug" in words:
            traceback.print_exc()
        say(f"error: {_failures.line(error)}")
        return _failures.code(error)


def build_parser() -> Parser:
    """Returns the parser of the whole command line.

    Example:
      >>> build_parser().parse_args(["demo", "--seed", "3"]).seed
      3
    """
    parser = Parser(
        prog="haiku-mqa",
        description="Decoder-only transformers with multi-query attention for Haiku.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "-V", "--version", action=_Version, nargs=0, help="print the version and exit"
    )
    add_debug(parser)
    parser.set_defaults(run=None, parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import haiku_mqa

        print(f"haiku-mqa {haiku_mqa.__version__}")
        parser.exit()


def _run(words: list[str]) -> int:
    parser = build_parser()
    parser.check_options(words)
    try:
        args, surplus = parser.parse_known_args(words)
    except SystemExit as asked_for:  # --help and --version
        return int(asked_for.code or 0)
    if surplus:
        args.parser.refuse(surplus[0])
    if args.run is None:
        args.parser.print_help(sys.stderr)
        return 2
    return args.run(args)


def _tolerate_narrow_streams() -> None:
    # A terminal that cannot show a character shows its code, and nothing fails.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not a text file: replaced by a host
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _drop_unwritten_output() -> None:
    """Writes what waits in stdout, or, where nobody takes it, lets go of it.

    The interpreter writes it once more as it ends, and would complain.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
