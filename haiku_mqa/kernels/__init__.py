"""Kernels in C for CPUs, which are compiled on request and do without otherwise.

XLA alone widens int8 matrices number by number, and makes attention of one token out
of a dozen small programs. Here both are single calls into a library that ``build``
compiles for the machine at hand, once; from then on it is found in the cache folder.
Where it was never built, or ``HAIKU_MQA_KERNELS=off`` is in the environment, all goes
by way of XLA, with the same results but for rounding.
"""

from haiku_mqa.kernels.calls import attend, attend_fits, int8_dots, int8_dots_fit
from haiku_mqa.kernels.compiler import build, find_compiler
from haiku_mqa.kernels.library import find, is_loaded, library_path

__all__ = [
    "attend",
    "attend_fits",
    "build",
    "find",
    "find_compiler",
    "int8_dots",
    "int8_dots_fit",
    "is_loaded",
    "library_path",
]
