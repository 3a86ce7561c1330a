"""Kernels in C for CPUs, which are compiled on request and do without otherwise.

XLA alone widens int8 and bfloat16 matrices number by number, reads them anew for every
one of a few rows, and makes attention of one token out of a dozen small programs. Here
these are single calls into a library that ``build`` compiles for the machine at hand,
once; from then on it is found in the cache folder. Where it was never built, or
``HAIKU_MQA_KERNELS=off`` is in the environment, all goes by way of XLA, with the same
results but for rounding.
"""

from haiku_mqa.kernels.calls import (
    attend,
    attend_fits,
    float_dots,
    float_dots_fit,
    int8_dots,
    int8_dots_fit,
    table_dot,
    table_dot_fits,
)
from haiku_mqa.kernels.compiler import build, find_compiler
from haiku_mqa.kernels.library import find, is_loaded, library_path, without

__all__ = [
    "attend",
    "attend_fits",
    "build",
    "find",
    "find_compiler",
    "float_dots",
    "float_dots_fit",
    "int8_dots",
    "int8_dots_fit",
    "is_loaded",
    "library_path",
    "table_dot",
    "table_dot_fits",
    "without",
]
