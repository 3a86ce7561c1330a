"""Runs a stranger's Jinja template, and only so much of it.

Jinja's sandbox keeps a template from Python's insides, but not from running for
ever or filling the memory. Here every loop, call, filter, test, comparison, sum
and output first pays, out of one budget, for the size of what it is about to
touch. What a chat template never needs is not there at all.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Callable, Iterable
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from haiku_mqa.pretrained._budget import CHARACTERS_TO_A_STEP, Budget

LONGEST_SOURCE = 131_072  # Characters; the longest known are a quarter of it.
_WIDEST_INDENT = 8

_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float"),
    *("int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject"),
    *("rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort"),
    *("string", "title", "trim", "unique", "upper"),
)
# They read a length, not what has it.
_FREE_FILTERS = ("count", "length")
_STRING_METHODS = (
    *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha"),
    *("isdigit", "islower", "isspace", "isupper", "lower", "lstrip", "partition"),
    *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition"),
    *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title"),
    "upper",
)
_MAPPING_METHODS = ("get", "items", "keys", "values")
# No template can spell these names, so none can call them.
_STEPS, _WEIGHED, _CONCAT = "#steps", "#weighed", "#concat"


def render(source: str, variables: dict[str, Any], steps: int) -> str:
    """Renders a template within a number of steps.

    Args:
      source: The template.
      variables: What it may name, beside ``raise_exception``, ``namespace``,
        ``range`` and ``dict``.
      steps: What it may do: about one for each item of a loop, each call, each
        filter, and each 32 characters that one of them touches.

    Returns:
      The text.

    Raises:
      Exception: Whatever an expression of the template can raise, beside
        ``jinja2.TemplateError``; there is no narrower promise to make.
    """
    budget = Budget(steps)
    environment = _Environment(budget, len(source))
    tree = _Charged(environment).visit(environment.parse(source))
    tree.set_environment(environment)
    template = environment.from_string(tree)
    text = []
    for piece in template.generate(variables):
        budget.spend(len(piece) // CHARACTERS_TO_A_STEP)
        text.append(piece)
    return "".join(text)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it, less what could run away."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: Budget, source_length: int):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            optimized=False,  # Nothing is worked out before it is paid for.
            finalize=_finalize(budget),
        )
        self._budget = budget
        self._call_steps = 1 + source_length // CHARACTERS_TO_A_STEP
        filters = {
            name: self.filters[name] if name in _FREE_FILTERS else self._paid(name)
            for name in _FILTERS
        }
        tests = {name: _charge(budget, test) for name, test in self.tests.items()}
        self.filters = {
            **filters,
            "join": self._join,
            "replace": self._replace,
            "tojson": self._tojson,
            _STEPS: self._steps,
            _WEIGHED: self._weighed,
            _CONCAT: self._concat,
        }
        self.tests = tests
        self.globals = {
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "range": self._range,
        }

    # --- What the sandbox asks -------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, dict):
            return attr in _MAPPING_METHODS
        if isinstance(obj, list | tuple | int | float):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        # So that str.format is asked about like any other method, and refused.
        return None

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator != "+" and not numbers):
            raise SecurityError(
                f"{operator!r} of {type(left).__name__} and {type(right).__name__} is "
                "out of bounds"
            )
        self._budget.weigh((left, right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > 64:
            raise jinja2.TemplateRuntimeError("a number is too large")
        return result

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        builtin = isinstance(obj, types.BuiltinMethodType)
        self._budget.spend(1 if builtin else self._call_steps)
        self._budget.weigh((args, kwargs))
        if builtin and isinstance(obj.__self__, str):
            self._budget.weigh(obj.__self__)
            if obj.__name__ == "replace":
                return self._replace(obj.__self__, *args, **kwargs)
        result = super().call(context, obj, *args, **kwargs)
        self._budget.weigh(result)
        return result

    # --- Filters and functions ------------------------------------------------

    def _paid(self, name: str) -> Callable[..., Any]:
        return _charge(self._budget, self.filters[name])

    def _range(self, *bounds: int) -> list[int]:
        return self._steps(range(*bounds))

    def _join(self, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = [self.getitem(item, attribute) for item in self._steps(value)]
        items = self._steps(value, len(d))
        self._budget.weigh(items)
        return str(d).join(map(str, items))

    def _replace(self, s: str, old: str, new: str, count: int | None = None) -> str:
        s, old, new = str(s), str(old), str(new)
        self._budget.weigh(s)
        size = 1 + len(new) // CHARACTERS_TO_A_STEP
        self._budget.spend(s.count(old) * size)
        return s.replace(old, new, -1 if count is None else count)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self._budget.weigh(value)
        wide = indent is not None and not 0 <= indent <= _WIDEST_INDENT
        if wide or any(len(text) > _WIDEST_INDENT for text in separators or ()):
            raise jinja2.TemplateRuntimeError(
                f"tojson must indent and separate by at most {_WIDEST_INDENT}"
            )
        # Unlike Jinja's own, it leaves <, > and & alone: a prompt is no web page.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _steps(self, value: Iterable[Any], size: int = 0) -> list[Any]:
        """Returns the items of a value, each paid for, with what it brings."""
        items = []
        for item in value:
            self._budget.spend(1 + size // CHARACTERS_TO_A_STEP)
            items.append(item)
        return items

    def _weighed(self, value: Any) -> Any:
        self._budget.weigh(value)
        return value

    def _concat(self, values: list[Any]) -> str:
        self._budget.weigh(values)
        return "".join(map(str, values))


class _Charged(NodeTransformer):
    """Puts a charge wherever Jinja's compiled code would not ask the environment."""

    def __init__(self, environment: _Environment):
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise jinja2.TemplateSyntaxError(
                "recursive loops are out of bounds", node.lineno
            )
        size = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        size += sum(1 for _ in node.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _filter(_STEPS, node.iter, nodes.Const(size))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(_WEIGHED, node.expr)
        for operand in node.ops:
            operand.expr = _filter(_WEIGHED, operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):  # It copies; an index does not.
            node.node = _filter(_WEIGHED, node.node)
        return node


def _filter(name: str, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(
        cast(nodes.Expr, value), name, list(args), [], None, None, lineno=value.lineno
    )


def _charge(budget: Budget, function: Callable[..., Any]) -> Callable[..., Any]:
    # ``wraps`` also keeps Jinja's mark of functions that are passed the context.
    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget.weigh((args, kwargs))
        return function(*args, **kwargs)

    return charged


def _finalize(budget: Budget) -> Callable[..., Any]:
    @jinja2.pass_context  # So that Jinja does not try it while it compiles.
    def finalize(_: Any, value: Any) -> Any:
        budget.weigh(value)
        return value

    return finalize


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


class Refusal(jinja2.TemplateError):
    """A template said, by ``raise_exception``, that messages are not as it wants."""
