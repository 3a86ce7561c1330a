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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PIECES = 8  # to a thread, so that one that is held up is not waited for
_OF_CORES = 1 << 28  # bytes
_OF_DEVICE = 1 << 32  # bytes: a fast memory gives fewer before a call has begun


def read_bandwidth(size: int | None = None, passes: int = 3) -> float:
    """Measures how many bytes a second can be read, by all cores together.

    On a CPU, as many threads as there are cores take the bitwise or of an array of
    64-bit words piece by piece: NumPy reads it at the memory's speed and holds no
    lock meanwhile. On an accelerator, the device takes the maximum of an array of
    its own, and makes another of it, which is bytes read and as many written; the
    faster of the two counts. The array is larger than caches are, and the fastest
    pass counts: a limit is what can be had when nobody disturbs.

    Args:
      size: Of the array, in bytes; if ``None`` 256 MiB, and on an accelerator 4 GiB,
        or an eighth of its memory if that is less.
      passes: How often it is read.

    Returns:
      Bytes per second.

    Example:
      >>> read_bandwidth(size=1 << 20, passes=1) > 0
      True
    """
    if jax.default_backend() == "cpu":
        return _of_cores(size or _OF_CORES, passes)
    return _of_device(size or _size_for(jax.devices()[0]), passes)


def own_cores() -> set[int]:
    """Returns which cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(own_cores())


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


def _size_for(device: Any) -> int:
    memory = (device.memory_stats() or {}).get("bytes_limit", 8 * _OF_DEVICE)
    return min(_OF_DEVICE, memory // 8)


def _of_device(size: int, passes: int) -> float:
    array = jnp.ones(size // 4, jnp.float32)

    def speed(stream: Callable[[jax.Array], jax.Array], moved: int) -> float:
        compiled = jax.jit(stream)
        jax.block_until_ready(compiled(array))  # compiles
        return _best(lambda: jax.block_until_ready(compiled(array)), moved, passes)

    return max(speed(jnp.max, array.nbytes), speed(jnp.negative, 2 * array.nbytes))


def _best(read: Callable[[], object], size: int, passes: int) -> float:
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return size / min(seconds)
