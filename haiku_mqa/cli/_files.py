"""Texts that come in, and files that go out whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path


def read_text(path: str) -> str:
    """Returns the text of a file, or of standard input, without its last newline.

    Args:
      path: The file; ``-`` is standard input.

    Raises:
      ValueError: The bytes are not UTF-8; the message names the first that is not.
      OSError: The file cannot be read.
    """
    if path == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        data, name = Path(path).read_bytes(), path
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be UTF-8, got the byte 0x{data[error.start]:02x} at "
            f"{error.start}"
        ) from None
    # An editor ends the last line; that is not part of what was meant.
    return text.removesuffix("\n").removesuffix("\r")


def check_argument(name: str, text: str) -> str:
    r"""Returns a text from the command line, once it is known to be UTF-8.

    Args:
      name: What to call it.
      text: The text, in which Python hides bytes that are no UTF-8 as surrogates.

    Raises:
      ValueError: It was not UTF-8.

    Example:
      >>> check_argument("PROMPT", "caf\udce9")
      Traceback (most recent call last):
      ValueError: PROMPT must be UTF-8, got the byte 0xe9 after 'caf'
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(error.start - 20, 0) : error.start]
        raise ValueError(
            f"{name} must be UTF-8, got the byte "
            f"0x{ord(text[error.start]) & 0xFF:02x} after {before!r}"
        ) from None
    return text


def check_writable(path: Path) -> None:
    """Raises ``OSError`` where a file could not be put at ``path``.

    Args:
      path: Where a file is going to be, once long work is done.

    Raises:
      OSError: Its folder is not there, or ``path`` is itself a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent)
        )
    with replacing(path) as part:
        part.touch()
        part.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file to write, which takes the place of ``path`` once it is whole.

    Args:
      path: Where the file goes. It stays as it was if the block raises, or if it
        writes nothing.

    Yields:
      A path beside it, with the same ending.

    Raises:
      OSError: The folder is not there or cannot be written.
    """
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield part
        if part.exists():
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
