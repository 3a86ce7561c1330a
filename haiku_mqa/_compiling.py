"""How XLA is asked to compile, and where it keeps what it compiled."""

from __future__ import annotations

import contextlib
import os
import warnings

from haiku_mqa._files import cache_folder
from haiku_mqa.errors import FetchError

# On a CPU half-precision matrices are widened before they are multiplied. XLA's own
# order of operations widens all of them first, and holds them all; by this one each is
# widened when its turn comes, and its room is then used again.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
_LEAST_SECONDS = 0.02  # of compiling, for a program to be kept


def prepare_jax() -> None:
    """Has jax keep what it compiles, so that the second run starts at once.

    Where the folder cannot be written, programs are compiled each time, without a
    word.
    """
    # XLA's loader of kept programs reports on every one of them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    with contextlib.suppress(OSError, FetchError):
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
