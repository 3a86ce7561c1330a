"""What the functions of this room ask of their arguments."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Returns an argument that must be a whole number, as Python's own int.

    Args:
      name: What the user calls it.
      value: What was given; NumPy's whole numbers will do.
      least: The smallest that is allowed.
      most: The largest that is allowed; none is if ``None``.

    Returns:
      The number.

    Raises:
      ValueError: It is something else, or out of range.

    Example:
      >>> whole_number("seq_len", 0)
      Traceback (most recent call last):
      ValueError: seq_len must be a whole number >= 1, got 0
    """
    allowed = f">= {least}" if most is None else f"from {least} to {most}"
    refusal = ValueError(f"{name} must be a whole number {allowed}, got {value!r}")
    if isinstance(value, bool):
        raise refusal
    try:
        number = operator.index(value)
    except TypeError:
        raise refusal from None
    if number < least or (most is not None and number > most):
        raise refusal
    return number
