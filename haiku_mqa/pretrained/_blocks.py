"""Blocks of a GGUF file's numbers, made float32 in few passes over them.

The ``gguf`` package knows every kind of block, but goes over 16 rows at a time in a
dozen steps. The kinds that most files are made of are undone here, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCK = 32  # numbers, in the kinds that are undone here
_LOW_HALVES = np.uint32(0x0F0F0F0F)  # of four bytes


def floats(kind: str, stored: np.ndarray) -> np.ndarray:
    """Returns the numbers that rows of blocks stand for.

    Args:
      kind: ggml's name of how they are stored, such as ``"Q4_1"``.
      stored: uint8 ``[rows, bytes]``, whole blocks.

    Returns:
      float32 ``[rows, columns]``, to be read: it can be a view of what is stored.

    Raises:
      NotImplementedError: The kind cannot be undone.

    Example:
      >>> floats("F32", np.float32([[1.5, -2.0]]).view(np.uint8)).tolist()
      [[1.5, -2.0]]
    """
    undo = _UNDO.get(kind)
    if undo is not None:
        return undo(stored).reshape(len(stored), -1)

    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(stored, GGMLQuantizationType[kind])


def _undo_q4_1(stored: np.ndarray) -> np.ndarray:
    """Undoes a scale and a least number, float16 each, and 32 numbers of four bits."""
    blocks = stored.reshape(-1, 4 + _BLOCK // 2)
    ends = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    numbers = _halves(blocks[:, 4:]).astype(np.float32)
    numbers *= ends[:, :1]
    numbers += ends[:, 1:]
    return numbers


def _undo_q8_0(stored: np.ndarray) -> np.ndarray:
    """Undoes a scale, float16, and 32 numbers of eight bits."""
    blocks = stored.reshape(-1, 2 + _BLOCK)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    numbers = blocks[:, 2:].view(np.int8).astype(np.float32)
    numbers *= scales
    return numbers


def _halves(packed: np.ndarray) -> np.ndarray:
    """Returns the low halves of each 16 bytes, and then the high ones, uint8."""
    # Four bytes at a time: NumPy takes as long for one as for four.
    words = np.ascontiguousarray(packed).view(np.uint32)
    halves = np.empty((len(words), 2, words.shape[1]), np.uint32)
    np.bitwise_and(words, _LOW_HALVES, out=halves[:, 0])
    np.bitwise_and(words >> 4, _LOW_HALVES, out=halves[:, 1])
    return halves.reshape(len(words), -1).view(np.uint8)


_UNDO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q4_1": _undo_q4_1,
    "Q8_0": _undo_q8_0,
}
