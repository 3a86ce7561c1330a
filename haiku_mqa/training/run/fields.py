"""How the fields of a run's configs are checked, each in the same words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from haiku_mqa._arguments import whole_number
from haiku_mqa.errors import unknown_name

_Config = TypeVar("_Config")


def names(config: type) -> tuple[str, ...]:
    """Returns the names of a config's fields.

    Args:
      config: A dataclass.
    """
    return tuple(field.name for field in dataclasses.fields(config))


def of_part(
    name: str,
    make: Callable[[Mapping[str, Any]], _Config],
    fields: Mapping[str, Any],
) -> _Config:
    """Returns a config that is part of another, or says of which part an error is.

    Args:
      name: Of the part.
      make: Makes it.
      fields: Of what it is made.

    Raises:
      ValueError: As ``make``, with the part's name before it.
    """
    try:
        return make(fields)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def require_fields(what: str, data: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises ``ValueError`` for the first name that is no field.

    Args:
      what: The config, as an error is to name it.
      data: By name.
      fields: The names that are.

    Raises:
      ValueError: Names the nearest that is.
    """
    for name in data:
        if name not in fields:
            raise unknown_name(f"{what} field", name, fields)


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` for a value that is none of a few.

    Args:
      name: Of the field.
      value: What was given.
      choices: What is allowed.

    Raises:
      ValueError: Names the nearest that is.
    """
    if value not in choices:
        raise unknown_name(name, str(value), choices)


def take_whole(config: Any, name: str, least: int, most: int | None = None) -> None:
    """Makes a field of a frozen config a Python int.

    Args:
      config: The config.
      name: Of the field.
      least: The smallest number allowed.
      most: The largest allowed; ``None`` is no limit.

    Raises:
      ValueError: It is no whole number, or out of range.
    """
    number = whole_number(name, getattr(config, name), least, most)
    object.__setattr__(config, name, number)
