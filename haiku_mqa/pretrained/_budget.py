"""How much a stranger's template may do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jinja2

CHARACTERS_TO_A_STEP = 32
_DEEPEST = 32


class Budget:
    """The steps that a template may still take."""

    def __init__(self, steps: int):
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise jinja2.TemplateRuntimeError(
                "it does more work than a chat template may"
            )

    def weigh(self, value: Any) -> None:
        """Pays for all that a value holds, once for each place that holds it."""
        stack = [(value, 0)]
        while stack:
            value, depth = stack.pop()
            self.spend(1)
            if isinstance(value, str):
                self.spend(len(value) // CHARACTERS_TO_A_STEP)
                continue
            if isinstance(value, dict):
                inside: Iterable[Any] = (*value, *value.values())
            elif isinstance(value, list | tuple):
                inside = value
            else:
                continue
            if depth == _DEEPEST:
                raise jinja2.TemplateRuntimeError(
                    f"it nests values deeper than {_DEEPEST}"
                )
            stack.extend((item, depth + 1) for item in inside)
