"""A walk over a file that believes no count in it before it is checked."""

from __future__ import annotations

import mmap
import pathlib
import struct
from typing import Any, NoReturn

import numpy as np

from haiku_mqa.errors import FormatError

_BOOL = 7
# Numbers that a GGUF file's metadata can hold, by the id of their type.
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class BoundedReader:
    """A place in a file, which moves on only over bytes that are there."""

    def __init__(self, path: pathlib.Path, buffer: mmap.mmap):
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0

    def fail(self, message: str, at: int) -> NoReturn:
        raise FormatError(f"{self.path}: byte {at}: {message}")

    def skip(self, size: int, what: str) -> int:
        """Moves ``size`` bytes on; returns where they begin."""
        start = self.position
        if size > self.size - start:
            self.fail(
                f"{what} takes {size} bytes, but {self.size - start} are left", start
            )
        self.position = start + size
        return start

    def unpack(self, form: str, what: str) -> Any:
        start = self.skip(struct.calcsize(form), what)
        return struct.unpack_from(form, self.buffer, start)[0]

    def count(self, smallest: int, what: str) -> int:
        """Reads how many things of at least ``smallest`` bytes each follow."""
        start = self.position
        count = self.unpack("<Q", what)
        if count > (self.size - self.position) // smallest:
            self.fail(
                f"{what} is {count}, more than the {self.size - self.position} bytes "
                "left can hold",
                start,
            )
        return count

    def string(self, what: str) -> str:
        start = self.skip(self.count(1, f"the length of {what}"), what)
        return self.text(start, self.position, what)

    def text(self, start: int, end: int, what: str) -> str:
        try:
            return self.buffer[start:end].decode()
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8", start + error.start)

    def strings(self, what: str) -> list[str]:
        count = self.count(8, f"the number of strings in {what}")
        # A vocabulary is some 100,000 short strings, so this loop is flat.
        texts: list[str] = []
        buffer, position, size = self.buffer, self.position, self.size
        from_bytes = int.from_bytes
        for _ in range(count):
            start = position + 8
            end = start + from_bytes(buffer[position:start], "little")
            if end > size:
                self.fail(f"a string of {what} goes past the end of the file", position)
            try:
                texts.append(buffer[start:end].decode())
            except UnicodeDecodeError:
                self.text(start, end, f"a string of {what}")
            position = end
        self.position = position
        return texts

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(NUMBERS[kind])
        start = self.skip(count * dtype.itemsize, what)
        numbers = np.frombuffer(self.buffer, dtype, count, start)
        if kind == _BOOL:
            if (numbers > 1).any():
                wrong = int((numbers > 1).argmax())
                self.fail(
                    f"{what} holds {numbers[wrong]}, not a boolean", start + wrong
                )
            return numbers.astype(bool)
        return numbers.astype(dtype.newbyteorder("="))


def in_one_line(value: object) -> str:
    """Returns a value out of the file as it can stand in a line of text."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"
