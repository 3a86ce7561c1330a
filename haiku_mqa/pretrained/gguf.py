"""GGUF files, read with bounds: no count in a file is believed before it is checked.

A model file is a stranger's. Every count and length is held against what is left
of the file before anything is allocated or looped over, so that reading takes time
and memory in proportion to the file, whatever its header claims.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._blocks import floats
from haiku_mqa.pretrained._bounds import NUMBERS, BoundedReader, in_one_line

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_LONGEST_KEY = 65_535  # Bytes; the format's own limit.
# The fewest bytes that one entry can take: a length, a type and a value; a length,
# a count of dimensions, one dimension, a type and an offset.
_SMALLEST_PAIR = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8

_STRING, _ARRAY = 8, 9
_PIECE = 131_072  # numbers: what a core keeps near while it works on them


def _keep_it() -> None:
    """Gives nothing back: what is no file has nowhere to come from again."""


@dataclasses.dataclass(frozen=True, eq=False)
class GGUFTensor:
    """One tensor of a GGUF file, still as the file stores it.

    Attributes:
      name: Its name in the file.
      shape: Its sizes, slowest first: ``[out, in]`` for a matrix. (The file itself
        counts them fastest first.)
      kind: How its numbers are stored, by ggml's name, such as ``"F32"`` or
        ``"Q4_1"``.
      data: Its bytes: a read-only view of the mapped file, uint8.
      give_back: Called when all of ``data`` was read, so that the process need not
        hold it any longer; what is read again comes from the file again.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: np.ndarray = dataclasses.field(repr=False)
    give_back: Callable[[], None] = dataclasses.field(repr=False, default=_keep_it)

    def dequantize(self) -> np.ndarray:
        """Returns the numbers that the bytes stand for.

        Returns:
          A new float32 array of ``shape``.

        Raises:
          FormatError: The numbers are stored in a way that cannot be undone here.

        Example:
          >>> one = np.frombuffer(np.float32([1.5, -2.0]).tobytes(), np.uint8)
          >>> GGUFTensor("blk.0.attn_norm.weight", (2,), "F32", one).dequantize()
          array([ 1.5, -2. ], dtype=float32)
        """
        numbers = np.empty(self.shape, np.float32)
        rows = numbers.reshape(-1, self.shape[-1])
        for start, piece in self.pieces():
            rows[start : start + len(piece)] = piece
        return numbers

    def cut(self, start: int, stop: int) -> GGUFTensor:
        """Returns some of the rows, still as the file stores them.

        Args:
          start: The first.
          stop: The one after the last.

        Returns:
          A tensor of so many rows.

        Example:
          >>> two = np.frombuffer(np.float32([1.5, -2.0]).tobytes(), np.uint8)
          >>> tensor = GGUFTensor("blk.0.attn_qkv.weight", (2, 1), "F32", two)
          >>> tensor.cut(1, 2).dequantize()
          array([[-2.]], dtype=float32)
        """
        data = self.data.reshape(self.shape[0], -1)[start:stop]
        shape = (len(data), *self.shape[1:])
        return dataclasses.replace(self, shape=shape, data=data.reshape(-1))

    def pieces(self, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the numbers some rows at a time, so that all never lie side by side.

        Args:
          multiple: How many rows belong together; a piece has whole groups of them,
            but for the last.

        Yields:
          Which row of the tensor, as ``[rows, columns]``, a piece begins with; and its
          numbers, float32 ``[some rows, columns]``, to be read.

        Raises:
          FormatError: The numbers are stored in a way that cannot be undone here.

        Example:
          >>> two = np.frombuffer(np.float32([1.5, -2.0]).tobytes(), np.uint8)
          >>> tensor = GGUFTensor("blk.0.attn_q.weight", (2, 1), "F32", two)
          >>> [(start, piece.tolist()) for start, piece in tensor.pieces()]
          [(0, [[1.5], [-2.0]])]
        """
        columns = self.shape[-1]
        rows = self.data.reshape(math.prod(self.shape[:-1]), -1)
        step = max(1, _PIECE // columns // multiple) * multiple
        for start in range(0, len(rows), step):
            stored = rows[start : start + step]
            try:
                # A damaged scale overflows here; whoever needs finite numbers says so
                # with the tensor's name, which a warning cannot.
                with np.errstate(over="ignore", invalid="ignore"):
                    numbers = floats(self.kind, stored)
            except NotImplementedError:
                raise FormatError(
                    f"tensor {in_one_line(self.name)} is stored as {self.kind}, which "
                    "cannot be dequantized"
                ) from None
            yield start, numbers
        self.give_back()


@dataclasses.dataclass(frozen=True, eq=False)
class GGUFFile:
    """What a GGUF file holds.

    Attributes:
      path: The file.
      metadata: Keys to numbers, booleans, strings, lists of strings, or NumPy
        arrays of numbers or booleans.
      tensors: Names to tensors, in the file's order.
    """

    path: pathlib.Path
    metadata: dict[str, Any] = dataclasses.field(repr=False)
    tensors: dict[str, GGUFTensor] = dataclasses.field(repr=False)


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads the header of a GGUF file, version 2 or 3, and maps its tensors.

    The tensors' bytes are mapped, not read: a tensor costs nothing until it is
    dequantized.

    Args:
      path: The file.

    Returns:
      Its metadata and tensors.

    Raises:
      FormatError: The file is damaged, truncated, or no little-endian GGUF file of
        a known version. The message names the file and the byte.
      OSError: The file cannot be opened.

    Example:
      >>> import struct, tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = pathlib.Path(folder.name, "empty.gguf")
      >>> _ = path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
      >>> read_gguf(path).tensors
      {}
    """
    path = pathlib.Path(path)
    status = path.stat()
    # Looked at before it is opened: opening a pipe would wait for a writer.
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: byte 0: not a regular file")
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:  # An empty file cannot be mapped.
            raise FormatError(f"{path}: byte 0: the file is empty")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = BoundedReader(path, buffer)
    tensor_count, pair_count = _read_counts(reader)
    metadata = _read_metadata(reader, pair_count)
    tensors = _read_tensors(reader, tensor_count, _alignment(reader, metadata))
    return GGUFFile(path, metadata, tensors)


def _read_counts(reader: BoundedReader) -> tuple[int, int]:
    magic = reader.buffer[reader.skip(4, "the magic") : 4]
    if magic != b"GGUF":
        reader.fail(f"the file begins with {magic!r}, not with b'GGUF'", 0)
    version = reader.unpack("<I", "the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        hint = " (the file is big-endian)" if swapped in _VERSIONS else ""
        reader.fail(f"GGUF version must be 2 or 3, got {version}{hint}", 4)
    # Nothing can be said yet of how the rest is shared between the two.
    tensors = reader.count(_SMALLEST_TENSOR, "the number of tensors")
    return tensors, reader.count(_SMALLEST_PAIR, "the number of metadata pairs")


def _read_metadata(reader: BoundedReader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        start = reader.position
        key = reader.string("a metadata key")
        if len(key) > _LONGEST_KEY:
            reader.fail(f"a metadata key is longer than {_LONGEST_KEY}", start)
        if key in metadata:
            reader.fail(f"metadata key {in_one_line(key)} is there twice", start)
        metadata[key] = _read_value(reader, in_one_line(key))
    return metadata


def _read_value(reader: BoundedReader, key: str) -> Any:
    start = reader.position
    kind = reader.unpack("<I", f"the type of {key}")
    if kind == _STRING:
        return reader.string(key)
    if kind in NUMBERS:
        return reader.numbers(kind, 1, key)[0].item()
    if kind != _ARRAY:
        reader.fail(f"{key} has the unknown type {kind}", start)
    start = reader.position
    kind = reader.unpack("<I", f"the type of {key}")
    if kind == _STRING:
        return reader.strings(key)
    if kind in NUMBERS:
        size = np.dtype(NUMBERS[kind]).itemsize
        return reader.numbers(kind, reader.count(size, f"the length of {key}"), key)
    if kind == _ARRAY:
        reader.fail(f"{key} is an array of arrays, which no known model has", start)
    reader.fail(f"{key} is an array of the unknown type {kind}", start)


def _alignment(reader: BoundedReader, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        reader.fail(
            f"general.alignment must be a power of two, got {in_one_line(alignment)}",
            reader.position,
        )
    return alignment


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What the header says of one tensor."""

    shape: tuple[int, ...]
    kind: str
    offset: int  # Bytes from where the tensors begin.
    size: int  # Bytes.
    told_at: int  # Where in the header this is told.


def _read_tensors(
    reader: BoundedReader, count: int, alignment: int
) -> dict[str, GGUFTensor]:
    sizes_of_kinds = _sizes_of_kinds()
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        start = reader.position
        name = reader.string("a tensor's name")
        if name in entries:
            reader.fail(f"tensor {in_one_line(name)} is there twice", start)
        entries[name] = _read_entry(
            reader, in_one_line(name), alignment, sizes_of_kinds
        )
    if not entries:
        return {}
    tensors_start = -(-reader.position // alignment) * alignment
    _check_extents(reader, entries, tensors_start)
    file_bytes = np.frombuffer(reader.buffer, np.uint8)
    tensors = {}
    for name, entry in entries.items():
        start = tensors_start + entry.offset
        data = file_bytes[start : start + entry.size]
        give_back = functools.partial(_give_back, reader.buffer, start, entry.size)
        tensors[name] = GGUFTensor(name, entry.shape, entry.kind, data, give_back)
    return tensors


def _give_back(buffer: mmap.mmap, start: int, size: int) -> None:
    # What was read of a mapped file counts as held until the system is told better.
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        begin = start - start % mmap.PAGESIZE
        buffer.madvise(mmap.MADV_DONTNEED, begin, start + size - begin)


def _check_extents(
    reader: BoundedReader, entries: dict[str, _Entry], tensors_start: int
) -> None:
    # Tensors that share bytes would let a small file stand for endless memory.
    free = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        end = entry.offset + entry.size
        if tensors_start + end > reader.size:
            reader.fail(
                f"tensor {in_one_line(name)} ends at byte {tensors_start + end}, past "
                f"the end of the file at {reader.size}",
                entry.told_at,
            )
        if entry.offset < free:
            reader.fail(f"tensor {in_one_line(name)} overlaps another", entry.told_at)
        free = end


def _read_entry(
    reader: BoundedReader,
    name: str,
    alignment: int,
    sizes_of_kinds: dict[int, tuple[str, int, int]],
) -> _Entry:
    start = reader.position
    dimensions = reader.unpack("<I", f"the dimensions of tensor {name}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        reader.fail(
            f"tensor {name} must have 1 to {_MAX_DIMENSIONS} dimensions, got "
            f"{dimensions}",
            start,
        )
    sizes = [reader.unpack("<Q", f"a size of tensor {name}") for _ in range(dimensions)]
    if not all(sizes):
        reader.fail(f"tensor {name} has the size 0", start)
    type_start = reader.position
    number = reader.unpack("<I", f"the type of tensor {name}")
    if number not in sizes_of_kinds:
        reader.fail(f"tensor {name} has the unknown type {number}", type_start)
    kind, block, block_bytes = sizes_of_kinds[number]
    if sizes[0] % block:
        reader.fail(
            f"tensor {name} is stored as {kind}, so its rows must be a multiple of "
            f"{block} long, got {sizes[0]}",
            type_start,
        )
    offset_start = reader.position
    offset = reader.unpack("<Q", f"the offset of tensor {name}")
    if offset % alignment:
        reader.fail(
            f"the offset of tensor {name} must be a multiple of {alignment}, got "
            f"{offset}",
            offset_start,
        )
    size = math.prod(sizes) // block * block_bytes  # Python's: it cannot overflow.
    return _Entry(tuple(reversed(sizes)), kind, offset, size, start)


def _sizes_of_kinds() -> dict[int, tuple[str, int, int]]:
    """Returns, by ggml's ids, names, numbers to a block, and bytes to a block."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
