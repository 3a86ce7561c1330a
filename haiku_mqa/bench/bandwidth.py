"""How fast the machine reads memory: the limit of decoding.

To choose one token, a decoder reads each of its weights once and does little with it.
So no program can choose more tokens a second than the memory's speed over the bytes
of the weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

_PIECES = 8  # to a thread, so that one that is held up is not waited for


def read_bandwidth(size: int = 1 << 28, passes: int = 3) -> float:
    """Measures how many bytes a second can be read, by all cores together.

    On a CPU, as many threads as there are cores take the bitwise or of an array of
    64-bit words piece by piece: NumPy reads it at the memory's speed and holds no
    lock meanwhile. On an accelerator, the device takes the maximum of an array of
    its own. The array is larger than caches are, and the fastest pass counts: a
    limit is what can be had when nobody disturbs.

    Args:
      size: Of the array, in bytes.
      passes: How often it is read.

    Returns:
      Bytes per second.

    Example:
      >>> read_bandwidth(size=1 << 20, passes=1) > 0
      True
    """
    if jax.default_backend() == "cpu":
        return _of_cores(size, passes)
    return _of_device(size, passes)


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_remarks() -> list[str]:
    """Returns a line if others keep this machine's cores busy, else none.

    Call it before anything is timed, or this process counts among the others.
    """
    if not hasattr(os, "getloadavg"):
        return []
    load = os.getloadavg()[0]
    if load < cores():
        return []
    return [
        f"the machine was busy before ({load:.1f} processes ran on {cores()} cores): "
        "programs whose threads wait for each other lose most"
    ]


def _of_cores(size: int, passes: int) -> float:
    # Ones and not zeros: a page that was never written need not be in memory.
    pieces = np.array_split(np.ones(size // 8, np.uint64), cores() * _PIECES)
    with ThreadPoolExecutor(cores()) as pool:
        return _best(
            lambda: list(pool.map(np.bitwise_or.reduce, pieces)), size // 8 * 8, passes
        )


def _of_device(size: int, passes: int) -> float:
    array = jnp.ones(size // 4, jnp.float32)
    read = jax.jit(jnp.max)
    jax.block_until_ready(read(array))  # compiles
    return _best(lambda: jax.block_until_ready(read(array)), size // 4 * 4, passes)


def _best(read: Callable[[], object], size: int, passes: int) -> float:
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return size / min(seconds)
