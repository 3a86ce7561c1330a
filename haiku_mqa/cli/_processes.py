"""The options that join several processes, the joining, and who speaks for all."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._options import whole


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds what joins several processes."""
    group = parser.add_argument_group(
        "several processes", "each is started with the same words but for its id"
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens (default: there is one process)",
    )
    group.add_argument(
        "--num-processes", type=whole(1), metavar="N", help="how many there are"
    )
    group.add_argument(
        "--process-id", type=whole(0), metavar="I", help="which this is, from 0"
    )
    group.add_argument(
        "--join-timeout",
        type=whole(1),
        metavar="SECONDS",
        help="how long they wait for each other at the start (default: 60)",
    )


def join_processes(args: argparse.Namespace) -> None:
    """Joins this process to the others, where there are some.

    Args:
      args: With what ``add_processes`` added, and ``mesh``.

    Raises:
      ValueError: Some of these options are left out.
      ProcessError: The others did not come in time.
    """
    given = (args.coordinator, args.num_processes, args.process_id)
    if all(value is None for value in (*given, args.join_timeout)):
        return
    if any(value is None for value in given) or args.mesh is None:
        raise ValueError(
            "several processes need --coordinator, --num-processes, --process-id and "
            "--mesh"
        )
    prepare_jax()
    from haiku_mqa.sharding import join

    wait = {} if args.join_timeout is None else {"seconds": args.join_timeout}
    join(*given, **wait)


@contextlib.contextmanager
def first_speaks(args: argparse.Namespace) -> Iterator[None]:
    """Has the first of several processes speak for all, unless another fails.

    Args:
      args: With what ``add_processes`` added.

    Yields:
      Nothing.

    Raises:
      ProcessError: Another process is gone.
    """
    if args.coordinator is None:
        yield
        return
    from haiku_mqa.sharding import is_first
    from haiku_mqa.sharding.processes import largest, loss_told

    with contextlib.ExitStack() as stack:
        stack.enter_context(loss_told("start all of them again"))
        # Gloo tells on standard output when it first connects: not amid a text.
        largest(0)
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
