"""A first signal asks a run to stop; a second one does not ask."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = ("SIGINT", "SIGTERM")


class StopRequest:
    """Whether a signal asked the run to stop.

    Attributes:
      name: The signal's, such as ``"SIGTERM"``; ``None`` until one came.
    """

    name: str | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM inside into a request.

    It gives the signals back to whatever handled them before, so that a second one
    acts at once. A signal that is ignored, as a shell's background jobs ignore
    SIGINT, stays ignored. Outside the main thread, where Python allows no handlers,
    nothing is done.

    Yields:
      The request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def give_back() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        request.name = signal.Signals(number).name
        give_back()

    for name in _SIGNALS:
        number = getattr(signal, name)
        handler = signal.getsignal(number)
        # None: installed by something else than Python, which could not be put back.
        if handler not in (signal.SIG_IGN, None):
            before[number] = handler
            signal.signal(number, ask)
    try:
        yield request
    finally:
        give_back()
