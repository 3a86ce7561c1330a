"""Safetensors files, read by mapping them and written without gathering them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from haiku_mqa._files import whole_file
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_INDEX = 2**28  # bytes; the index of a thousand layers takes a thousandth


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
      path: Of the file.
      name: Its own.
      dtype: By the name that the file gives it.
      shape: Of its numbers.
      offset: Where they begin, in bytes.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def mapped(self) -> np.ndarray:
        """Returns the numbers as they lie in the file, which is mapped for them."""
        dtype = DTYPES[self.dtype]
        if not math.prod(self.shape):
            return np.empty(self.shape, dtype)
        # A mapping of its own: its pages are given back with the array.
        mapped = np.memmap(self.path, np.uint8, "r", self.offset, self._size())
        return mapped.view(np.ndarray).view(dtype).reshape(self.shape)

    def _size(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def dtype_name(tensor: StoredTensor) -> str:
    """Returns NumPy's name of a tensor's dtype, or the file's own where it has none."""
    known = DTYPES.get(tensor.dtype)
    return tensor.dtype if known is None else known.name


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a folder, in one file or in those that an index names.

    Args:
      folder: The model's.

    Returns:
      Names to tensors, none of which was read.

    Raises:
      FormatError: A file is damaged, an index names a file outside the folder, or
        what it says is not what its files hold.
      OSError: A file is not there, or cannot be read.
    """
    if not (folder / INDEX).exists():
        return tensors_in(folder / WEIGHTS)
    places = _places(folder / INDEX)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        found |= {
            name: tensor
            for name, tensor in tensors_in(folder / file).items()
            if places.get(name, file) == file
        }
    # The index may leave tensors out, but not promise what is not there.
    lost = [name for name, file in places.items() if name not in found]
    if lost:
        raise FormatError(
            f"{folder / INDEX}: {len(lost)} tensors are not where it says, among them "
            f"{in_one_line(lost[0])} in {places[lost[0]]}"
        )
    return found


def _places(path: Path) -> dict[str, str]:
    index = read_json(path)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{path}: weight_map must map tensors to files")
    for file in places.values():
        plain = isinstance(file, str) and file == Path(file).name
        if not plain or not file.endswith(".safetensors"):
            raise FormatError(
                f"{path}: weight_map must name .safetensors files of its own folder, "
                f"got {in_one_line(file)}"
            )
    return places


def read_json(path: Path) -> dict[str, Any]:
    """Returns the mapping that a JSON file holds.

    Args:
      path: Of the file.

    Raises:
      FormatError: It holds something else.
      OSError: It is not there, or cannot be read.
    """
    if path.stat().st_size > _MOST_INDEX:
        raise FormatError(f"{path} must be of at most {_MOST_INDEX} bytes")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path} must hold a mapping, got {in_one_line(data)}")
    return data


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file.

    Args:
      path: Of the file.

    Returns:
      Names to tensors, none of which was read.

    Raises:
      FormatError: It is damaged.
      OSError: It is not there, or cannot be read.
    """
    with open(path, "rb") as file:  # safetensors' own error names no file
        try:
            # It checks every length and offset against the file's size.
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise FormatError(
                f"{path} is no safetensors file, or damaged: {error}"
            ) from None
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            path=path,
            name=name,
            dtype=about["dtype"],
            shape=tuple(about["shape"]),
            offset=8 + length + about["data_offsets"][0],
        )
        for name, about in header.items()
    }


# --- Writing ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outline:
    """What is known of a tensor before it is made.

    Attributes:
      shape: Of its numbers.
      dtype: Of its numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, outlines: Mapping[str, Outline], arrays: Iterable[np.ndarray]
) -> None:
    """Writes a safetensors file, a tensor at a time.

    Args:
      path: Of the file; a crash leaves it as it was, or whole.
      outlines: Of the tensors by name.
      arrays: The tensors in the same order, each of its outline.

    Raises:
      OSError: It cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, outline in outlines.items():
        header[name] = {
            "dtype": _NAMES[outline.dtype],
            "shape": list(outline.shape),
            "data_offsets": [start, start + outline.size],
        }
        start += outline.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers begin at whole words
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def shards(
    outlines: Mapping[str, Outline], most: int
) -> Iterator[tuple[str, dict[str, Outline]]]:
    """Yields files, none larger than a limit where it holds more than one tensor.

    Args:
      outlines: Of the tensors by name.
      most: Bytes of the numbers in a file.

    Yields:
      The name of each file, and what goes into it.
    """
    files: list[dict[str, Outline]] = [{}]
    room = most
    for name, outline in outlines.items():
        if files[-1] and outline.size > room:
            files.append({})
            room = most
        files[-1][name] = outline
        room -= outline.size
    for number, part in enumerate(files, 1):
        numbered = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        yield WEIGHTS if len(files) == 1 else numbered, part
