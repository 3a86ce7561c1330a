"""How a mistake is told: the field, the value, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FormatError(ValueError):
    """A file that is damaged, truncated, or not of the format it claims.

    Example:
      >>> issubclass(FormatError, ValueError)
      True
    """


class FetchError(RuntimeError):
    """Weights that could not be brought to this machine.

    Example:
      >>> raise FetchError("no network")
      Traceback (most recent call last):
      haiku_mqa.errors.FetchError: no network
    """


class BuildError(RuntimeError):
    """The kernels could not be compiled.

    Example:
      >>> raise BuildError("no C compiler")
      Traceback (most recent call last):
      haiku_mqa.errors.BuildError: no C compiler
    """


class PluginError(RuntimeError):
    """A plugin of a model zoo that could not be used; names its distribution.

    Example:
      >>> raise PluginError("entry 'tiny' of tiny-zoo 1.0: ImportError: no torch")
      Traceback (most recent call last):
      haiku_mqa.errors.PluginError: entry 'tiny' of tiny-zoo 1.0: ImportError: no torch
    """


class ProcessError(RuntimeError):
    """Other processes of a run that did not come, or that are gone.

    Example:
      >>> raise ProcessError("another process of the run is gone")
      Traceback (most recent call last):
      haiku_mqa.errors.ProcessError: another process of the run is gone
    """


class EngineFull(RuntimeError):
    """A request that came while as many as may were waiting; it can come again.

    Example:
      >>> raise EngineFull("64 requests wait already")
      Traceback (most recent call last):
      haiku_mqa.errors.EngineFull: 64 requests wait already
    """


class EngineStopped(RuntimeError):
    """A request that came after its engine was told to stop.

    Example:
      >>> raise EngineStopped("the engine is stopped")
      Traceback (most recent call last):
      haiku_mqa.errors.EngineStopped: the engine is stopped
    """


def unknown_name(field: str, value: str, allowed: Iterable[str]) -> ValueError:
    """Returns the error for a name that is not among those allowed.

    Args:
      field: What was being named, as the user knows it.
      value: The unknown name.
      allowed: Every name that would have been right.

    Returns:
      A ``ValueError`` that names the nearest allowed name, where one is near.

    Example:
      >>> print(unknown_name("model", "smolm2", ["smollm2-135m", "mqa-decoder"]))
      unknown model 'smolm2': did you mean 'smollm2-135m'? Allowed: mqa-decoder, \
smollm2-135m
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(
        f"unknown {field} {value!r}: {hint}Allowed: {', '.join(names) or '(none)'}"
    )
