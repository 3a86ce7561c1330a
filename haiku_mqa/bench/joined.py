"""Processes that work as one, each held to a core of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from haiku_mqa.bench.bandwidth import own_cores
from haiku_mqa.bench.processes import Answering

_SCRIPT = Path(__file__).with_name("scaling_script.py")


class Joined:
    """Processes that ``jax.distributed`` joins, on loopback; one is alone."""

    def __init__(self, count: int, settings: Mapping[str, Any]):
        """Starts them.

        Args:
          count: How many.
          settings: What ``scaling_script.Worker`` is to know.

        Raises:
          OSError: One could not be started.
          ValueError: One ended at once; the message has its last line.
        """
        cores = sorted(own_cores())
        common = {
            **settings,
            "processes": count,
            "coordinator": f"127.0.0.1:{_free_port()}",
        }
        with contextlib.ExitStack() as stack:
            self._pool = stack.enter_context(ThreadPoolExecutor(count))
            self._processes: list[Answering] = []
            for index in range(count):
                own = {"process": index, "core": cores[index % len(cores)]}
                words = [json.dumps({**common, **own})]
                process = Answering(sys.executable, _SCRIPT, words, isolated=False)
                stack.callback(process.close)
                self._processes.append(process)
            self._opened = stack.pop_all()

    def ask(self, do: str, **words: Any) -> list[dict[str, Any]]:
        """Returns what each answers, asked all at once.

        Args:
          do: The method.
          **words: Its arguments.

        Raises:
          ValueError: One ended; the message has its last line.
        """
        line = json.dumps({"do": do, **words})
        return list(self._pool.map(lambda each: each.ask(line), self._processes))

    def close(self) -> None:
        """Ends them."""
        self._opened.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
