"""The compiled kernels: where they lie, and how XLA comes to know them."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

from haiku_mqa import _processor
from haiku_mqa._files import cache_folder

SOURCE = Path(__file__).with_name("cpu.c")
TARGETS = (
    "haiku_mqa_int8_dots",
    "haiku_mqa_float_dots",
    "haiku_mqa_table_dot",
    "haiku_mqa_attend",
)
_SWITCH = "HAIKU_MQA_KERNELS"
_is_without = contextvars.ContextVar("_is_without", default=False)


def library_path() -> Path:
    """Returns where the library for this machine lies, built or not.

    Its name holds a digest of the source, of jaxlib's version and of the processor,
    so that what was built for others is never loaded.

    Raises:
      FetchError: There is no cache folder.

    Example:
      >>> library_path().suffix
      '.so'
    """
    digest = hashlib.sha256(SOURCE.read_bytes())
    machine = (platform.system(), platform.machine(), _processor.flags())
    for part in (importlib.metadata.version("jaxlib"), *machine):
        digest.update(part.encode() + b"\0")
    return cache_folder() / "kernels" / f"cpu-{digest.hexdigest()[:16]}.so"


def find() -> Path | None:
    """Returns the library for this machine, or ``None`` where it was never built.

    Raises:
      FetchError: There is no cache folder.
    """
    path = library_path()
    return path if path.is_file() else None


def is_loaded() -> bool:
    """Returns whether the kernels are at hand, having loaded them where they are.

    Programs that were compiled keep what they were compiled with.
    """
    is_wanted = os.environ.get(_SWITCH, "on").lower() not in ("off", "0")
    is_wanted = is_wanted and not _is_without.get()
    return is_wanted and jax.default_backend() == "cpu" and load()


@contextlib.contextmanager
def without() -> Iterator[None]:
    """Has what is traced inside do without kernels, which no partitioner can split.

    Returns:
      A context.

    Example:
      >>> with without():
      ...     is_loaded()
      False
    """
    token = _is_without.set(True)
    try:
        yield
    finally:
        _is_without.reset(token)


@functools.cache
def load() -> bool:
    """Makes the kernels known to XLA, once in a process; ``build`` has it look again.

    Returns:
      Whether they are there.
    """
    path = find()
    if path is None:
        return False
    try:
        library = ctypes.CDLL(str(path))
        handlers = [jax.ffi.pycapsule(getattr(library, name)) for name in TARGETS]
    except (OSError, AttributeError) as error:
        warnings.warn(
            f"{path} cannot be loaded, and is done without: {error}; "
            "`haiku-mqa kernels build` makes it anew",
            stacklevel=2,
        )
        return False
    for name, handler in zip(TARGETS, handlers, strict=True):
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return True
