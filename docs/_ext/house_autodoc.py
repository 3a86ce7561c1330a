"""What autodoc has to be told of constructors, named tuples and our docstrings."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import typing
from typing import Any

from house_names import public
from sphinx.domains.python import PyObject


def evaluate_types(app: Any) -> None:
    """Evaluates the types of constructors, which autodoc would leave as text."""
    public()  # imports every room
    for name, module in list(sys.modules.items()):
        for thing in vars(module).values() if name.startswith("haiku_mqa") else ():
            if inspect.isclass(thing) and thing.__module__ == name:
                constructor = inspect.unwrap(thing.__init__)
                # A type that only another library knows by that name stays text.
                with contextlib.suppress(NameError):
                    if inspect.isfunction(constructor):
                        constructor.__annotations__ = typing.get_type_hints(constructor)


def skip_fields(
    app: Any, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves fields of named tuples to the class's own list of attributes."""
    if type(thing).__name__ == "_tuplegetter":
        return True
    return None


def tidy(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Takes out what Python says of constructors; keeps colons from Napoleon.

    In the first line of a property or of what is returned, Napoleon takes what stands
    before a colon for a type; our types stand in the signatures.
    """
    boring = ("Create new instance of ", "Initialize self.")
    lines[:] = [line for line in lines if not line.startswith(boring)]
    if what == "property":
        lines[:0] = ["..", ""]  # an empty comment: the first line has no colon
    for at, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            prose = re.match(r"(\s*\w+ [^:`]*): (.*)", lines[at + 1])
            if prose:
                lines[at + 1] = f"{prose[1]}; {prose[2]}"


def setup(app: Any) -> dict[str, bool]:
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as our docstrings call them
    app.connect("builder-inited", evaluate_types)
    app.connect("autodoc-skip-member", skip_fields)
    # Before Napoleon, which is connected with the usual priority.
    app.connect("autodoc-process-docstring", tidy, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
