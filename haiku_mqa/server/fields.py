"""Single fields of a body: what kind of value each must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from haiku_mqa.server.api_errors import ApiError, bad_field


def whole(
    fields: Mapping[str, Any], name: str, least: int | None, most: int | None
) -> int:
    """Returns a field that must be a whole number.

    Args:
      fields: Of the body; the field is there.
      name: Of the field.
      least: The smallest allowed; ``None`` is no limit.
      most: The largest allowed; ``None`` is no limit.

    Raises:
      ApiError: It is none, or out of range.
    """
    value = fields[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < (value if least is None else least):
        above = "" if least is None else f" >= {least}"
        raise wrong(name, f"a whole number{above}", value)
    if most is not None and value > most:
        raise wrong(name, f"a whole number from {least} to {most}", value)
    return value


def number(fields: Mapping[str, Any], name: str, default: float) -> float:
    """Returns a field that must be a number.

    Args:
      fields: Of the body.
      name: Of the field.
      default: Where it is not there.

    Raises:
      ApiError: It is none.
    """
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise wrong(name, "a number", value) from None


def flag(name: str, value: Any) -> bool:
    """Returns a value that must be true or false.

    Args:
      name: Of the field.
      value: Its value.

    Raises:
      ApiError: It is neither.
    """
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def wrong(name: str, allowed: str, value: Any) -> ApiError:
    """Returns the error for a value that is not allowed.

    Args:
      name: Of the field, and where in it the value is.
      allowed: What is.
      value: The value.
    """
    field = name.partition("[")[0]
    return bad_field(field, f"{name} must be {allowed}, got {shown(value)}")


def shown(value: Any, longest: int = 60) -> str:
    """Returns a value as JSON, cut where it is long.

    Args:
      value: Of a body.
      longest: In characters.

    Example:
      >>> shown([1, "a"]), shown("abcdef", longest=3)
      ('[1, "a"]', '"ab...')
    """
    text = json.dumps(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
