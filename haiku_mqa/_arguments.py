"""What functions ask of their arguments, and configs of their fields."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, TypeGuard


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


def is_number(value: object) -> TypeGuard[int | float]:
    """Returns whether a value is one of Python's own numbers, and finite.

    Args:
      value: Anything.

    Example:
      >>> is_number(2), is_number(2.5), is_number(True), is_number(float("nan"))
      (True, True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -math.inf < value < math.inf  # a huge int cannot be asked if it is finite


def check_count(name: str, value: object) -> None:
    """Refuses what is not one of Python's own whole numbers, at least one.

    Args:
      name: What the user calls it.
      value: What was given.

    Raises:
      ValueError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Refuses what is not a finite number above zero.

    Args:
      name: What the user calls it.
      value: What was given.

    Raises:
      ValueError: It is something else.
    """
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be a number > 0, got {value!r}")


def check_at_least(name: str, value: object, least: float) -> None:
    """Refuses what is not a finite number from ``least`` upwards.

    Args:
      name: What the user calls it.
      value: What was given.
      least: The smallest that is allowed.

    Raises:
      ValueError: It is something else.
    """
    if not is_number(value) or value < least:
        raise ValueError(f"{name} must be a number >= {least:g}, got {value!r}")


def check_kv_heads(num_heads: int, num_kv_heads: int) -> None:
    """Refuses numbers of heads that cannot be shared evenly.

    Args:
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads; must divide N.

    Raises:
      ValueError: K does not divide N; the message lists what does.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise ValueError(
            f"num_kv_heads must divide num_heads = {num_heads}, got {num_kv_heads}; "
            f"allowed: {', '.join(map(str, divisors))}"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Returns in words where two configs differ; empty where they do not.

    Args:
      theirs: Fields of the one that was met.
      ours: Fields of the one that was meant.

    Example:
      >>> differences({"d_ff": 64, "d_model": 8}, {"d_ff": 32, "d_model": 8})
      'd_ff = 64, not 32'
    """
    return "; ".join(
        f"{name} = {theirs.get(name)!r}, not {ours.get(name)!r}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    )
