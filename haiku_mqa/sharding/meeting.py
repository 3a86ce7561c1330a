"""Processes that wait for each other, by plain sockets, before JAX joins them.

JAX's own client waits too, and where one does not come it ends the whole process, past
every handler of errors. So it is asked to only when all are there.
"""

from __future__ import annotations

import contextlib
import socket
import time

_WORD = b"go"
_SIZE = 4  # bytes of an id
_PAUSE = 0.1  # seconds between two tries
_PATIENCE = 1  # seconds for what connects to say who it is


def meet(host: str, port: int, num_processes: int, process_id: int, end: float) -> None:
    """Returns once all processes are there.

    Args:
      host: Where process 0 is.
      port: At which it listens until then.
      num_processes: How many there are.
      process_id: Which this is, from zero.
      end: The time of ``time.monotonic`` until which to wait.

    Raises:
      OSError: They were not all there in time; it is a ``TimeoutError``. Or there is no
        such host, or another program has the port.
    """
    if process_id == 0:
        _await_others(port, num_processes, end)
    else:
        _report(host, port, process_id, end)


def _await_others(port: int, num_processes: int, end: float) -> None:
    missing = {*range(1, num_processes)}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(port))
        met: dict[int, socket.socket] = {}
        while missing:
            listener.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise TimeoutError(f"no word of process {min(missing)}") from None
            stack.enter_context(connection).settimeout(_PATIENCE)
            with contextlib.suppress(OSError):  # whoever it was, it is gone
                process = int.from_bytes(connection.recv(_SIZE, socket.MSG_WAITALL))
                met[process] = connection
                missing.discard(process)
        for connection in met.values():
            with contextlib.suppress(OSError):
                connection.sendall(_WORD)


def _listener(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True
        )
    return socket.create_server(("", port))


def _report(host: str, port: int, process_id: int, end: float) -> None:
    while (left := end - time.monotonic()) > 0:
        with (
            contextlib.suppress(ConnectionError, TimeoutError),  # it is not there yet
            socket.create_connection((host, port), left) as connection,
        ):
            connection.sendall(process_id.to_bytes(_SIZE))
            if connection.recv(len(_WORD), socket.MSG_WAITALL) == _WORD:
                return
        time.sleep(_PAUSE)
    raise TimeoutError("no word of process 0")
