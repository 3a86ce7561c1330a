"""The public names, found in the package itself, and a table of them for a page."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import haiku_mqa

FACE = "haiku_mqa"


def rooms() -> list[str]:
    """Returns the rooms: every module and package right inside the package."""
    return sorted(
        info.name
        for info in pkgutil.iter_modules(haiku_mqa.__path__)
        if not info.name.startswith("_")
    )


def names_of(room: ModuleType) -> list[str]:
    """Returns a room's public names: its ``__all__``, or what it defines itself."""
    if hasattr(room, "__all__"):
        return sorted(room.__all__)
    return sorted(
        name
        for name, thing in vars(room).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isroutine(thing))
        and thing.__module__ == room.__name__
    )


@functools.cache
def public() -> dict[str, Any]:
    """Returns dotted names to what they name: of the face first, then of each room."""
    found = {f"{FACE}.{name}": getattr(haiku_mqa, name) for name in haiku_mqa.__all__}
    for name in rooms():
        room = importlib.import_module(f"{FACE}.{name}")
        found |= {
            f"{room.__name__}.{name}": getattr(room, name) for name in names_of(room)
        }
    return found


def undocumented(documented: Iterable[str]) -> list[str]:
    """Returns the public names that none of the documented ones stands for.

    What the face and a room both offer is one thing, and needs one place.
    """
    documented = set(documented)
    things = {id(thing) for name, thing in public().items() if name in documented}
    return [
        name
        for name, thing in public().items()
        if name not in documented and id(thing) not in things
    ]


def shortest(name: str) -> str:
    """Returns the name that people type for what a dotted name stands for."""
    thing = public()[name]
    return min((n for n, t in public().items() if t is thing), key=len)


def summary(name: str) -> str:
    """Returns the first sentence of a thing's docstring."""
    thing = public()[name]
    if not has_docstring(thing):
        return f"A constant: {type(thing).__name__}."
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def has_docstring(thing: Any) -> bool:
    """Returns whether a docstring would be its own; a constant's is its type's."""
    return inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)


def setup(app: Any) -> dict[str, bool]:
    """Adds ``{public-names} MODULE``: a table of a module's public names."""
    from sphinx.util.docutils import SphinxDirective

    class PublicNames(SphinxDirective):
        required_arguments = 1

        def run(self) -> list[Any]:
            module = self.arguments[0]
            lines = ["| name | what it is |", "| --- | --- |"]
            for name in sorted(public()):
                room, _, last = name.rpartition(".")
                if room == module:
                    role = "mod" if inspect.ismodule(public()[name]) else "obj"
                    link = f"{{py:{role}}}`{last} <{shortest(name)}>`"
                    lines.append(f"| {link} | {summary(name)} |")
            return self.parse_text_to_nodes("\n".join(lines))

    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
