"""Docstrings say all that one must know, and each public name has a page of docs/api.

The pages are read here as text, so that this needs no Sphinx; the build itself holds
the inventory that it writes to the same public names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import haiku_mqa
from tests.readme_blocks import REPOSITORY, blocks

sys.path.insert(0, str(REPOSITORY / "docs/_ext"))
import house_names

PAGES = sorted((REPOSITORY / "docs/api").glob("*.md"))
PUBLIC = house_names.public()
WITH_DOCSTRING = {
    house_names.shortest(name): thing
    for name, thing in PUBLIC.items()
    if house_names.has_docstring(thing)
}
_DIRECTIVE = re.compile(r"^\.\. (currentmodule|auto\w+|data):: ([\w.]+)$", re.MULTILINE)


def _documented(text: str) -> set[str]:
    """Returns the dotted names that the directives of a page document."""
    found, module = set(), ""
    for kind, name in _DIRECTIVE.findall(text):
        if kind == "currentmodule":
            module = name
        else:
            found.add(name if name.startswith("haiku_mqa.") else f"{module}.{name}")
    return found


def _rooms() -> set[str]:
    """Returns the rooms that have a page of their own."""
    return {f"haiku_mqa.{page.stem}" for page in PAGES}


# --- Pages ----------------------------------------------------------------------------


def test_every_public_name_has_a_place_in_the_api_pages():
    text = "\n".join(page.read_text() for page in PAGES)
    assert house_names.undocumented(_documented(text) | _rooms()) == []


def test_undocumented_tells_of_a_name_that_was_left_out():
    names = set(PUBLIC) - {"haiku_mqa.build", "haiku_mqa.model.build"}
    left_out = ["haiku_mqa.build", "haiku_mqa.model.build"]
    assert house_names.undocumented(names) == left_out


def test_undocumented_takes_a_name_of_the_face_for_that_of_the_room():
    names = set(PUBLIC) - {"haiku_mqa.model.build"}
    assert house_names.undocumented(names) == []


def test_every_room_has_a_page_that_the_contents_list():
    contents = blocks(REPOSITORY / "docs/api/index.md")[-1].text.split()
    listed = [word for word in contents if word.isidentifier()]
    assert sorted(listed) == house_names.rooms()
    assert {page.stem for page in PAGES} == {*house_names.rooms(), "index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_documents_only_names_that_are_there(page):
    for name in _documented(page.read_text()):
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


# --- Docstrings -----------------------------------------------------------------------


def _functions(name: str, thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields a function, or the public methods that a class writes itself."""
    if inspect.isfunction(thing):
        yield name, thing
    elif inspect.isclass(thing):
        for method, member in vars(thing).items():
            function = inspect.unwrap(getattr(member, "__func__", member))
            public = not method.startswith("_") or method == "__call__"
            lambda_field = getattr(function, "__name__", "") == "<lambda>"
            if public and inspect.isfunction(function) and not lambda_field:
                yield f"{name}.{method}", function


FUNCTIONS = {
    name: function
    for outer, thing in WITH_DOCSTRING.items()
    for name, function in _functions(outer, thing)
}


def _arguments(function: Callable[..., Any]) -> list[str]:
    names = list(inspect.signature(function).parameters)
    return [name for name in names if name not in ("self", "cls")]


def _section(docstring: str, title: str) -> str:
    """Returns the text of a section of a docstring; empty where it has none."""
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    return match[1] if match else ""


@pytest.mark.parametrize("name", WITH_DOCSTRING)
def test_docstring_begins_with_a_sentence(name):
    text = vars(WITH_DOCSTRING[name]).get("__doc__") or WITH_DOCSTRING[name].__doc__
    assert text, f"{name} has no docstring"
    assert inspect.cleandoc(text).partition("\n\n")[0].endswith("."), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_of_function_begins_with_a_sentence(name):
    text = inspect.cleandoc(FUNCTIONS[name].__doc__ or "")
    assert text.partition("\n\n")[0].endswith((".", ":")), f"{name}: {text!r}"


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if _arguments(FUNCTIONS[n])])
def test_docstring_tells_of_every_argument_or_is_one_line_that_does(name):
    function = FUNCTIONS[name]
    text = inspect.cleandoc(function.__doc__ or "")
    if "\n\n" not in text and len(_arguments(function)) < 4:
        return  # one sentence, as "Returns the text that a token makes whole."
    told = re.findall(r"^  (\w+): ", _section(text, "Args"), re.MULTILINE)
    assert told == _arguments(function), f"{name} tells of {told}"


def _returns_something(function: Callable[..., Any]) -> bool:
    returned = inspect.signature(function).return_annotation
    return returned not in (None, "None", inspect.Signature.empty)


@pytest.mark.parametrize(
    "name", [n for n, f in FUNCTIONS.items() if _returns_something(f)]
)
def test_docstring_tells_what_is_returned(name):
    text = inspect.cleandoc(FUNCTIONS[name].__doc__ or "")
    in_summary = re.match(r"(Returns|Yields|Reads|Builds|Measures) ", text)
    assert in_summary or _section(text, "Returns"), f"{name} says nothing of its result"


def _raises(function: Callable[..., Any]) -> set[str]:
    """Returns the errors that a function raises in its own lines."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    errors, nodes = set(), list(ast.iter_child_nodes(definition))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            errors.add(ast.unparse(node.exc.func).rpartition(".")[2])
        if not isinstance(node, ast.FunctionDef):  # what that raises may be caught
            nodes += ast.iter_child_nodes(node)
    return {error for error in errors if error[:1].isupper()}


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if _raises(f)])
def test_docstring_tells_what_is_raised(name):
    function = FUNCTIONS[name]
    section = _section(inspect.cleandoc(function.__doc__ or ""), "Raises")
    told = set(re.findall(r"^  (\w+): ", section, re.MULTILINE))
    missing = _raises(function) - told
    assert not missing, f"{name} says nothing of {', '.join(sorted(missing))}"


def test_sections_of_docstrings_are_found():
    text = "Sum.\n\nArgs:\n  a: One.\n    More.\n  b: Two.\n\nReturns:\n  It.\n"
    assert re.findall(r"^  (\w+): ", _section(text, "Args"), re.M) == ["a", "b"]
    assert _section(text, "Returns").strip() == "It."
    assert _section(text, "Raises") == ""


def _names_spoken_of():
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    found = {
        name
        for page in pages
        for name in re.findall(r"\bhm\.([A-Za-z_][\w.]*\w)", page.read_text())
    }
    return sorted(found)


@pytest.mark.parametrize("name", _names_spoken_of())
def test_every_name_that_a_page_speaks_of_exists(name):
    assert operator.attrgetter(name)(haiku_mqa) is not None
