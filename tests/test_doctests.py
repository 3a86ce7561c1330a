"""The examples in docstrings: each is run, and no public name is without one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import haiku_mqa

# What runs when it is imported, and what needs a host that only parity brings.
LEFT_OUT = ("haiku_mqa.__main__", "haiku_mqa.hosts.lm_eval_model")
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(haiku_mqa.__path__, "haiku_mqa.")
    if info.name not in LEFT_OUT
)
_finder = doctest.DocTestFinder()


def _examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in _finder.find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module_print_what_they_show(name):
    for test in _examples(importlib.import_module(name)):
        printed: list[str] = []
        failed, _ = doctest.DocTestRunner().run(test, out=printed.append)
        assert not failed, "".join(printed)


def test_examples_are_found_in_most_modules():
    found = {name for name in MODULES if _examples(importlib.import_module(name))}
    assert len(found) > len(MODULES) / 3


@pytest.mark.parametrize("name", haiku_mqa.__all__)
def test_public_name_has_an_example(name):
    thing = getattr(haiku_mqa, name)
    if inspect.ismodule(thing):
        return
    assert callable(thing), f"{name} is neither a class, nor a function, nor a room"
    assert ">>> " in (inspect.getdoc(thing) or ""), f"{name} has no example"
