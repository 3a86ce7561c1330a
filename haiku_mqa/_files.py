"""Files that are whole, or are not there, and the folder of what can be remade."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from haiku_mqa.errors import FetchError


def cache_folder() -> Path:
    """Returns the folder of fetched weights and compiled kernels, there or not.

    That is ``$HAIKU_MQA_CACHE`` where it is set, else ``haiku_mqa`` inside
    ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
      FetchError: No variable is set and there is no home folder.

    Example:
      >>> import os
      >>> from unittest import mock
      >>> with mock.patch.dict(os.environ, HAIKU_MQA_CACHE="/tmp/weights"):
      ...     cache_folder().as_posix()
      '/tmp/weights'
    """
    try:
        if own := os.environ.get("HAIKU_MQA_CACHE"):
            return Path(own).expanduser()
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The convention has relative paths ignored.
        if not base.is_absolute():
            base = Path.home() / ".cache"
    except RuntimeError as error:
        raise FetchError(
            f"no cache folder: {error} Set HAIKU_MQA_CACHE to a folder."
        ) from error
    return base / "haiku_mqa"


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Returns an argument that must be a path.

    Args:
      name: What the user calls it.
      value: What was given.

    Raises:
      ValueError: It is something else, such as an argument in another's place.

    Example:
      >>> as_path("folder", {})
      Traceback (most recent call last):
      ValueError: folder must be a path, got dict
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} must be a path, got {type(value).__name__}")
    return Path(value)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file to write, which takes its name only when all of it is written.

    Args:
      path: Where it goes; what is there is replaced.

    Yields:
      The file, empty; if what is done with it fails, nothing of it is left.

    Raises:
      OSError: The folder is not there, cannot be written or is full. The file stays
        as it was, and nothing is left beside it.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file that a crash leaves either as it was or as it should be.

    Args:
      path: Where it goes; what is there is replaced.
      data: All of its bytes.

    Raises:
      OSError: The folder is not there, cannot be written or is full. The file stays
        as it was, and nothing is left beside it.
    """
    with whole_file(path) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened to be synced
    with contextlib.suppress(OSError):  # some file systems refuse; it is in place
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
