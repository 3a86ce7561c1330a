"""The house, kept by its imports: rooms on floors, each library in its own room."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import haiku_mqa
from tests.conftest import LONGEST

PACKAGE = Path(haiku_mqa.__file__).parent
REPOSITORY = PACKAGE.parent
LONGEST_FILE = 400  # lines, docstrings apart

FLOORS = {
    "_arguments": 0,
    "_files": 0,
    "_heap": 0,
    "_processor": 0,
    "errors": 0,
    "rope_scaling": 0,
    "config": 0,
    "_compiling": 1,
    "_keep": 1,
    "text": 1,
    "kernels": 1,
    "ops": 1,
    "cache": 1,
    "modules": 2,
    "checks": 2,
    "model": 3,
    "lora": 3,
    "model_folder": 3,
    "cache_file": 3,
    "sharding": 3,
    "generation": 4,
    "training": 4,
    "pretrained": 4,
    "heads": 4,
    "quantization": 4,
    "streaming": 5,
    "server": 5,
    "zoo": 5,
    "testing": 5,
    "planning": 5,
    "cli": 6,
    "hosts": 6,
    "bench": 6,
    "__main__": 7,
}
BESIDE = {  # rooms that may look into one on their own floor
    ("rope_scaling", "_arguments"),
    ("rope_scaling", "errors"),
    ("_files", "errors"),
    ("config", "_arguments"),
    ("config", "errors"),
    ("config", "rope_scaling"),  # one of a config's fields
    ("ops", "kernels"),  # what a product or attention is made with
    ("checks", "modules"),  # a call's positions are worked out in one place
    ("model_folder", "model"),
    ("lora", "model"),
    ("sharding", "model"),  # a sharded model is one
    ("cache_file", "model"),
    ("server", "streaming"),  # text goes out as it comes
    ("cli", "bench"),  # the verb runs the room of its name
    ("cli", "hosts"),  # as a verb
}

ARRAYS = {room for room, floor in FLOORS.items() if floor >= 1}
THIRD_PARTY = {
    "jax": ARRAYS,
    "numpy": ARRAYS,
    "chex": ARRAYS,
    "haiku": {room for room, floor in FLOORS.items() if floor >= 2},
    "optax": {"training"},
    "orbax": {"training"},
    "etils": {"training"},  # which comes with orbax
    "grain": {"training"},
    "tensorboardX": {"training"},
    "safetensors": {"cache_file", "model_folder", "pretrained"},
    "gguf": {"pretrained"},
    "tokenizers": {"pretrained", "text"},
    "jinja2": {"pretrained"},
    "tqdm": {"zoo", "training", "hosts", "cli", "bench"},
    "huggingface_hub": {"zoo"},
    "matplotlib": {"cli"},
    "hypothesis": {"testing"},
    "starlette": {"server"},
    "uvicorn": {"cli"},
    "llm": {"hosts"},
    "lm_eval": {"hosts", "cli"},  # a verb starts it
    "pydantic": {"hosts"},  # which comes with llm
}


def _files() -> list[Path]:
    # The lazy face of the package knows every room, and is on no floor.
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _modules_imported(path: Path) -> Iterator[str]:
    """Yields the dotted name of everything that a file imports, wherever it does."""
    package = ["haiku_mqa", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source == "haiku_mqa":
                yield from (f"haiku_mqa.{_home(alias.name)}" for alias in node.names)
            else:
                yield source


def _home(name: str) -> str:
    return haiku_mqa._HOME.get(name, name)


def _id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


every_file = pytest.mark.parametrize("path", _files(), ids=_id)


@every_file
def test_file_stands_in_a_room_of_the_house(path):
    assert _room(path) in FLOORS


@every_file
def test_file_imports_only_from_floors_below(path):
    room = _room(path)
    for module in _modules_imported(path):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if top != "haiku_mqa" or other == room or (room, other) in BESIDE:
            continue
        if not other:  # the face: only those on top may look through it
            assert FLOORS[room] >= 5, f"{room} imports the whole package"
        elif other != "__version__":
            assert FLOORS[other] < FLOORS[room], f"{room} imports {module}"


@every_file
def test_file_imports_a_library_only_in_its_room(path):
    for module in _modules_imported(path):
        top = module.split(".")[0]
        if top == "haiku_mqa" or top in sys.stdlib_module_names:
            continue
        plots = top == "matplotlib" and path.stem.startswith("plot")
        assert plots or _room(path) in THIRD_PARTY.get(top, ()), f"imports {module}"


@every_file
def test_file_is_not_too_long(path):
    source = path.read_text()
    docstrings = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            ast.get_docstring(node) is not None
        ):
            text = node.body[0]
            docstrings += text.end_lineno - text.lineno + 1
    assert len(source.splitlines()) - docstrings < LONGEST_FILE


@every_file
def test_file_asserts_nothing_that_python_can_be_told_to_skip(path):
    if _room(path) == "testing":
        return
    tree = ast.parse(path.read_text())
    asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not asserts, f"bare assert at lines {asserts}"


def _run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_package_imports_no_jax_until_a_name_needs_it():
    program = (
        "import sys, haiku_mqa; haiku_mqa.DecoderConfig, dir(haiku_mqa); "
        "print('jax' in sys.modules); haiku_mqa.build; print('jax' in sys.modules)"
    )
    assert _run(program).split() == ["False", "True"]


@pytest.mark.parametrize("name", haiku_mqa.__all__)
def test_public_name_resolves(name):
    assert getattr(haiku_mqa, name) is not None


def test_public_names_are_those_that_have_a_home():
    assert sorted({*haiku_mqa._HOME, *haiku_mqa._ROOMS}) == sorted(haiku_mqa.__all__)
    assert {*haiku_mqa.__all__, "__version__"} == set(dir(haiku_mqa))


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'multi_head_attention'"):
        haiku_mqa.multi_head_attention  # noqa: B018


def test_version_is_that_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert haiku_mqa.__version__ == setup["metadata"]["version"]


@pytest.mark.parametrize("name", LONGEST)
def test_file_of_tests_that_is_begun_first_is_there(name):
    assert (REPOSITORY / name).is_file()
