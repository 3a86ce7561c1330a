"""The thread that makes an engine's turns, from its start to its stop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from haiku_mqa.generation._line import Line


class Background:
    """Makes turns while there is anything to do, in a thread of its own."""

    def __init__(self, line: Line, step: Callable[[], bool]):
        """Begins without a thread.

        Args:
          line: Of requests.
          step: Makes one turn; returns whether any request is still open.
        """
        self._line = line
        self._step = step
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether a thread makes the turns."""
        return self._thread is not None

    def start(self) -> None:
        """Begins the thread, and has the line take requests.

        Raises:
          RuntimeError: It runs already.
        """
        with self._line.work:
            if self._thread is not None:
                raise RuntimeError("the engine was started already")
            self._line.is_closed = False
            self._thread = threading.Thread(
                target=self._keep_on, name="haiku_mqa-engine", daemon=True
            )
            self._thread.start()

    def stop(self, *, finish: bool, timeout: float | None) -> None:
        """Closes the line, and returns when no request is open and no thread runs.

        Where none ran, the turns that are left are made here.

        Args:
          finish: Whether open requests come to their end; else they are cancelled.
          timeout: Seconds after which those that are still open are cancelled.
        """
        with self._line.work:
            self._line.is_closed = True
            self._line.work.notify_all()
            thread = self._thread
        if not finish:
            self._cancel_all()
        if thread is not None:
            thread.join(timeout)
            self._cancel_all()
            thread.join()
        else:
            while self._step():
                pass
        with self._line.work:
            self._thread = None

    def _keep_on(self) -> None:
        while True:
            with self._line.work:
                while not self._line.has_open and not self._line.is_closed:
                    self._line.work.wait()
                if not self._line.has_open:
                    return
            # Whoever waits for a request is told of the error; others go on.
            with contextlib.suppress(Exception):
                self._step()

    def _cancel_all(self) -> None:
        for request in self._line.all_open():
            self._line.leave(request)
