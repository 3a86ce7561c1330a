"""How the C library treats the memory that a program frees."""

from __future__ import annotations

import ctypes

# glibc's names for what mallopt sets, with values that keep memory in the process.
_KEEPING = {
    -8: 1,  # M_ARENA_MAX: one heap for all threads, so that what one frees serves all
    -4: 0,  # M_MMAP_MAX: large blocks come from the heap, not each from the system
    -1: -1,  # M_TRIM_THRESHOLD: the heap never shrinks
    -2: 2**26,  # M_TOP_PAD: it grows by 64 MiB at a time
}


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, for what it allocates next.

    XLA frees a step's temporaries at the end of the step. By default glibc gives
    blocks of that size back to the system, which hands them out again page by page,
    each zeroed: a quarter of a training step on two cores. It is for programs: it
    holds for the whole process, which then stays as large as it ever was.

    Returns:
      Whether this C library can be told so (glibc can).

    Example:
      >>> isinstance(keep_freed_memory(), bool)
      True
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return False
    return all(set_option(option, value) == 1 for option, value in _KEEPING.items())
