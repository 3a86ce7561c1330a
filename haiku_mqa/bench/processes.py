"""Programs that benchmarks run in processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def output(
    words: Sequence[str],
    doing: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    r"""Runs a program to its end, and returns what it printed.

    Args:
      words: Its command.
      doing: What it does, as an error is to say it.
      folder: Where it runs; here if ``None``.
      environment: Its variables; this process's own if ``None``.

    Raises:
      OSError: It could not be started.
      ValueError: It failed; the message has its last line.

    Example:
      >>> output(["echo", "to be"], "speaking")
      'to be\n'
    """
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"{doing} failed: {last_line(done.stderr)}")
    return done.stdout


def last_line(said: str) -> str:
    r"""Returns the last line of what a program said of its failure.

    Args:
      said: All of it.

    Example:
      >>> last_line("Traceback ...\nImportError: no torch\n"), last_line("")
      ('ImportError: no torch', 'it said nothing')
    """
    return (said.strip().splitlines() or ["it said nothing"])[-1]
