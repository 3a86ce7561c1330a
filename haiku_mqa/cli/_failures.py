"""What a failure is called, and which exit code it gets."""

from __future__ import annotations

from haiku_mqa.errors import (
    BuildError,
    FetchError,
    FormatError,
    PluginError,
    ProcessError,
)


class UsageError(ValueError):
    """Words that are no command."""


class MissingExtra(ImportError):
    """A part of the distribution that was left out when it was installed."""

    def __init__(self, purpose: str, extra: str):
        """Says what needs which extra."""
        super().__init__(
            f"{purpose} needs the extra '{extra}': pip install 'haiku-mqa[{extra}]'"
        )


_TOLD_AS_THEY_ARE = (
    ValueError,
    OSError,
    FloatingPointError,
    BuildError,
    FetchError,
    PluginError,
    ProcessError,
    MissingExtra,
)


def code(error: Exception) -> int:
    """Returns the exit code for an error: 2 for a mistake of the user's, else 1.

    Args:
      error: What was raised.

    Example:
      >>> code(ValueError("top_p must be in (0, 1], got 1.5")), code(OSError())
      (2, 1)
    """
    # A damaged file is a ValueError too, and no mistake of whoever names it.
    is_misuse = isinstance(error, ValueError) and not isinstance(error, FormatError)
    return 2 if is_misuse else 1


def line(error: Exception) -> str:
    r"""Returns what to tell of an error, in one line.

    Args:
      error: What was raised.

    Example:
      >>> line(ValueError("d_ff must be\n  positive"))
      'd_ff must be positive'
      >>> line(FileNotFoundError(2, "No such file or directory", "a.gguf"))
      'a.gguf: No such file or directory'
      >>> line(KeyError("w"))
      "unexpected KeyError: 'w' (--debug shows where)"
    """
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, _TOLD_AS_THEY_ARE) and message:
        return message
    return f"unexpected {type(error).__name__}: {message} (--debug shows where)"
