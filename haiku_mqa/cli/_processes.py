"""The options that join several processes, and the joining."""

from __future__ import annotations

import argparse

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


def join_processes(args: argparse.Namespace) -> None:
    """Joins this process to the others, where there are some.

    Args:
      args: With what ``add_processes`` added, and ``mesh``.

    Raises:
      ValueError: Some of these options are left out.
      ProcessError: The others did not come in time.
    """
    given = (args.coordinator, args.num_processes, args.process_id)
    if all(value is None for value in given):
        return
    if any(value is None for value in given) or args.mesh is None:
        raise ValueError(
            "several processes need --coordinator, --num-processes, --process-id and "
            "--mesh"
        )
    from haiku_mqa.sharding import join

    join(*given)
