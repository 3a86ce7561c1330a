"""Parameter paths are a public format: checkpoints depend on them.

``pytest tests/test_golden.py --update-golden`` writes the trees anew; a change in one
is a break for everybody who saved parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models import EXAMPLES, example

GOLDEN = Path(__file__).parent / "golden" / "parameters"


def _tree(name: str) -> dict[str, list]:
    """Returns path -> [shape, dtype] for every parameter of an example."""
    return {
        f"{module}/{leaf}": [list(spec.shape), spec.dtype.name]
        for module, leaves in example(name).param_shapes.items()
        for leaf, spec in leaves.items()
    }


def _as_text(tree: dict[str, list]) -> str:
    lines = [f"  {json.dumps(path)}: {json.dumps(tree[path])}" for path in sorted(tree)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_parameter_tree_is_the_golden_one(name, update_golden):
    golden = GOLDEN / f"{name}.json"
    if update_golden:
        golden.write_text(_as_text(_tree(name)))
    assert golden.exists(), "write it with --update-golden"
    assert json.loads(golden.read_text()) == _tree(name)


def test_golden_trees_are_those_of_the_examples():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EXAMPLES)
