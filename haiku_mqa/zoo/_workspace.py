"""A cache folder that several processes share, any of which may be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

_PREFIX = ".fetch-"
_OWNER = "owner"
_STALE_SECONDS = 3600.0


def say(line: str) -> None:
    """Tells the user one line on stderr.

    Args:
      line: What to say, without a newline.
    """
    print(f"haiku_mqa: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds the right to bring ``target``, waiting for whoever holds it.

    The lock spares a second download; files are put in place by one rename, so a
    system that has no locks loses nothing but that. It ends with its process, and
    the lock file stays: removing it would race with those who wait for it.

    Args:
      target: The file that is to be brought.

    Yields:
      Nothing; the lock is held meanwhile.

    Raises:
      OSError: The lock file cannot be written.
    """
    with open(target.with_name(f".{target.name}.lock"), "ab") as file:
        if _try_lock(file) is False:
            say(f"waiting for another process that is fetching {target.name}")
            while _try_lock(file) is False:
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder inside ``folder`` that is gone afterwards, whatever happens.

    Args:
      folder: An existing folder, on the disk that the work is meant for.

    Yields:
      The new folder.

    Raises:
      OSError: It cannot be made.
    """
    temp = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    try:
        with open(temp / f"{_OWNER}.new", "wb") as file:
            _try_lock(file)
            # Renamed once locked: nobody sees an owner file without its owner.
            os.replace(temp / f"{_OWNER}.new", temp / _OWNER)
            yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def clear_stale(folder: Path) -> None:
    """Removes the temporary folders that killed processes left behind.

    One is left behind when its owner's lock has ended, or, where locks cannot tell,
    when nothing was written to it for an hour.

    Args:
      folder: The folder that they are in.
    """
    for temp in folder.glob(f"{_PREFIX}*"):
        if _owner_is_gone(temp) or _seconds_idle(temp) > _STALE_SECONDS:
            shutil.rmtree(temp, ignore_errors=True)


def files_under(folder: Path) -> Iterator[os.stat_result]:
    """Yields the status of every file under a folder that others write to.

    What disappears meanwhile, file or folder, is passed over.

    Args:
      folder: Where to look.

    Yields:
      One status for each file, in no order.
    """
    # Not Path.rglob, which raises when a folder is gone before it is read.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.stat(os.path.join(parent, name))


def put_in_place(part: Path, target: Path) -> None:
    """Moves a whole, synced file to where it belongs, so that it stays there.

    Args:
      part: A file on the same disk as ``target``.
      target: Where it goes; what is there is replaced.

    Raises:
      OSError: It cannot be moved.
    """
    os.replace(part, target)
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened to be synced
    with contextlib.suppress(OSError):  # some file systems refuse; it is in place
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _try_lock(file: IO[bytes]) -> bool | None:
    """Returns whether the lock is held now; ``None`` where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _owner_is_gone(temp: Path) -> bool:
    try:
        with open(temp / _OWNER, "rb") as file:
            return _try_lock(file) is True
    except OSError:
        return False


def _seconds_idle(temp: Path) -> float:
    times = [status.st_mtime for status in files_under(temp)]
    with contextlib.suppress(OSError):
        times.append(temp.stat().st_mtime)
    return time.time() - max(times, default=time.time())
