"""What becomes of a file's parameters, which are read one at a time.

Whoever reads a file hands each parameter over as it is made and forgets it, so that
no more memory is needed than for what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from haiku_mqa.config import DecoderConfig

Keep = Callable[[DecoderConfig, str, str, np.ndarray | jax.Array], Any]
"""A config, and a module's path, a name and an array, to what is kept of the array."""

_ALIGNMENT = 64  # bytes; where the processor is the device, arrays begin there


def on_device(
    config: DecoderConfig, module: str, name: str, array: np.ndarray | jax.Array
) -> jax.Array:
    """Keeps a parameter as it is, on the default device.

    Args:
      config: Of the decoder.
      module: Path of the parameter's module.
      name: Its own.
      array: Its numbers, which nobody changes from now on.

    Returns:
      The array; where it can be, in the memory that it was given in.
    """
    return jax.device_put(array)


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array of any numbers, which jax can take over without copying it.

    Args:
      shape: Of the array.
      dtype: Of its numbers.

    Example:
      >>> array = aligned_empty((3, 5), np.float32)
      >>> array.shape, array.ctypes.data % 64
      ((3, 5), 0)
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
