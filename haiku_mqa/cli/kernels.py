"""``haiku-mqa kernels``: the kernels in C, compiled for this machine."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._screen import say

_DESCRIPTION = """\
Kernels in C that make decoding on a CPU faster, int8 weights above all. They are
compiled once, for this machine, into the cache folder; from then on every program of
this library uses them. Without them all works too. HAIKU_MQA_KERNELS=off in the
environment leaves them aside.
"""

_EPILOG = """\
examples:
  haiku-mqa kernels build
  haiku-mqa kernels info
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``kernels`` and its own verbs."""
    parser = _options.add_verb(
        verbs,
        "kernels",
        help="compile the kernels that make a CPU faster",
        run=None,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    own = parser.add_subparsers(title="verbs", metavar="VERB")
    build = _options.add_verb(
        own, "build", help="compile them for this machine", run=run_build
    )
    build.add_argument(
        "--compiler",
        metavar="COMMAND",
        help="a C compiler with GCC's options (default: $CC, gcc, clang, cc, or what "
        "the extra kernels installs; gcc's are the fastest)",
    )
    _options.add_verb(
        own, "info", help="tell whether they are there and used", run=run_info
    )


def run_build(args: argparse.Namespace) -> int:
    """Compiles the kernels.

    Args:
      args: With ``compiler``.

    Returns:
      0.

    Raises:
      BuildError: There is no C compiler, or it failed.
    """
    from haiku_mqa import kernels

    words = shlex.split(args.compiler) if args.compiler else kernels.find_compiler()
    say(f"compiling with {' '.join(words)}")
    path = kernels.build(words)
    if not kernels.is_loaded():
        say("they are left aside here: see `haiku-mqa kernels info`")
    print(path)
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Prints where the kernels are and whether they are used.

    Args:
      args: None are needed.

    Returns:
      0 where they are used, else 1.
    """
    del args
    from haiku_mqa import kernels

    found = kernels.find()
    is_used = kernels.is_loaded()
    print(f"library  {found or f'{kernels.library_path()} (not built)'}")
    print(f"used     {'yes' if is_used else 'no'}")
    return 0 if is_used else 1
