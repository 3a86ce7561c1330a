"""What the processor at hand can do, as its system tells it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_TELLS = Path("/proc/cpuinfo")  # on Linux
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def flags() -> str:
    """Returns the words for its instructions, or what is next to them elsewhere.

    Example:
      >>> isinstance(flags(), str)
      True
    """
    try:
        lines = _TELLS.read_text().splitlines()
    except OSError:
        return platform.processor()
    # The first processor's alone: the words for what it can do are each one's.
    return next((x for x in lines if x.startswith(("flags", "Features"))), "")


def multiplies_bfloat16() -> bool:
    """Returns whether it has instructions for products of bfloat16.

    One that has none takes longer for them than for those of float32.

    Example:
      >>> multiplies_bfloat16() in (True, False)
      True
    """
    return not _BFLOAT16.isdisjoint(flags().split())
