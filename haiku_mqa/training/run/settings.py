"""Fields of a run as a command line says them: ``optimizer.learning_rate=3e-4``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haiku_mqa.errors import unknown_name

Parts = Mapping[str, Sequence[str]]


def with_settings(
    data: Mapping[str, Any], settings: Iterable[str], parts: Parts
) -> dict[str, Any]:
    """Returns a run's fields with some of them set.

    Args:
      data: Every field by its name; those of a part by theirs, inside it.
      settings: Each the path of a field and its value as JSON; what is no JSON is a
        text. A last one wins.
      parts: Which fields are parts, and what fields those have.

    Returns:
      Plain data.

    Raises:
      ValueError: There is no such field; the nearest is named.

    Example:
      >>> with_settings({"seed": 0, "data": {}}, ["data.packing=windows", "seed=7"],
      ...     parts={"data": ["packing", "loader"]})
      {'seed': 7, 'data': {'packing': 'windows'}}
    """
    paths = [name for name in data if name not in parts]
    paths += [f"{part}.{name}" for part, inner in parts.items() for name in inner]
    found = {name: dict(x) if name in parts else x for name, x in data.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        path = path.strip()
        if not equals:
            raise ValueError(
                f"setting {setting!r} must be FIELD=VALUE, such as "
                "optimizer.learning_rate=3e-4"
            )
        if path not in paths:
            raise _unknown(path, paths, parts)
        part, dot, name = path.partition(".")
        (found[part] if dot else found)[name if dot else path] = _value(text)
    return found


def _unknown(path: str, paths: Sequence[str], parts: Parts) -> ValueError:
    part = path.partition(".")[0]
    if "." in path and part in parts:
        return unknown_name("setting", path, [f"{part}.{n}" for n in parts[part]])
    # All of them are too many to read, so only the nearest is told.
    ends = [known for known in paths if known.rpartition(".")[2] == path]
    near = ends or difflib.get_close_matches(path, paths, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown setting {path!r}: {hint}See RunConfig")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
