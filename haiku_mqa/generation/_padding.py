"""Lengths that prompts are padded to: few, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bucket(length: int) -> int:
    """Returns the padded length for a length: a power of two, or three quarters of one.

    Args:
      length: In tokens, >= 1.

    Returns:
      The least bucket of at least ``length``, and at least 16.

    Example:
      >>> [bucket(length) for length in (1, 17, 25, 100, 130)]
      [16, 24, 32, 128, 192]
    """
    power = 16
    while power < length:
        power *= 2
    return max(16, power * 3 // 4 if power * 3 // 4 >= length else power)


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts as one array, int32 ``[P, T]``, T a bucket, and their lengths.

    Args:
      prompts: Lists of token ids, none empty.

    Example:
      >>> tokens, lengths = padded([[5, 6], [7]])
      >>> tokens.shape, lengths.tolist()
      ((2, 16), [2, 1])
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), bucket(int(lengths.max()))), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, lengths
