"""Programs that benchmarks run in processes of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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


class Answering:
    """A script in a process of its own, which answers each line with one of JSON.

    Attributes:
      greeting: What it says first, once it is ready.
    """

    def __init__(
        self, python: str, script: Path, words: Sequence[str], *, isolated: bool = True
    ):
        """Starts it, and waits until it is ready.

        Args:
          python: What runs it; it may be another Python than this one.
          script: The script.
          words: That it is given.
          isolated: Whether it sees libraries alone; else what this process sees, too.

        Raises:
          OSError: It could not be started.
          ValueError: It ended at once; the message has its last line.
        """
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            # In no way may this folder's files stand before those of libraries.
            self._process = subprocess.Popen(
                [python, "-I" if isolated else "-P", str(script), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
            stack.callback(self._end)
            self.greeting: dict[str, Any] = self._answer("")
            self._opened = stack.pop_all()  # all went well: it is closed later

    def ask(self, line: str) -> dict[str, Any]:
        """Returns the answer to a line.

        Args:
          line: Without a newline.

        Raises:
          ValueError: The process ended; the message has its last line.
        """
        return self._answer(f"{line}\n")

    def close(self) -> None:
        """Ends the process."""
        self._opened.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what waits in a pipe is not missed
                if stream is not None:
                    stream.close()

    def _answer(self, line: str) -> dict[str, Any]:
        source, answers = self._process.stdin, self._process.stdout
        answer = ""
        if source is not None and answers is not None:
            with contextlib.suppress(BrokenPipeError):
                source.write(line)
                source.flush()
            answer = answers.readline()
        if not answer:
            self._errors.seek(0)
            raise ValueError(last_line(self._errors.read()))
        return json.loads(answer)
