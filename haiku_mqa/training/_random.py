"""Random numbers by place, not by turn: no generator is carried along.

Follows Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*.
"""

from __future__ import annotations

import numpy as np

WINDOWS, DOCUMENTS = 1, 2  # streams; one seed gives each its own numbers


def random_words(seed: int, stream: int, place: int, count: int) -> np.ndarray:
    """Returns the random numbers of a place, always the same.

    NumPy promises that Philox's words stay as they are from version to version. It
    does not promise so for what a ``Generator`` makes of them, which is not used.

    Args:
      seed: From 0 to 2**64 - 1.
      stream: What they are for.
      place: From 0 to 2**64 - 1; a step or an epoch.
      count: How many.

    Returns:
      uint64 ``[count]``.

    Example:
      >>> random_words(seed=0, stream=1, place=7, count=3) % np.uint64(100)
      array([13, 31, 41], dtype=uint64)
    """
    key = np.array([seed, stream], np.uint64)
    # The counter's last word: the first ones count what is drawn.
    counter = np.array([0, 0, 0, place], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def shuffled(seed: int, stream: int, place: int, count: int) -> np.ndarray:
    """Returns the numbers below ``count`` in an order that is the place's own.

    Args:
      seed: From 0 to 2**64 - 1.
      stream: What they are for.
      place: From 0 to 2**64 - 1.
      count: How many.

    Returns:
      int64 ``[count]``.
    """
    return np.argsort(random_words(seed, stream, place, count), kind="stable")
