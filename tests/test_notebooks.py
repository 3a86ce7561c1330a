"""The notebooks of docs/: each is executed, and gives the kinds of output it shows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.readme_blocks import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs/notebooks").glob("*.ipynb"))
SECONDS = 600  # for one cell; it trains, and other tests run beside it

_LOAD = 'loaded = hm.load_pretrained("smollm2-135m")'
_FIRST_LAYERS = """
import dataclasses
first = hm.build(loaded.model.config.first_layers(2))
own = {path: loaded.params[path] for path in first.param_shapes}
loaded = dataclasses.replace(loaded, model=first, params=own)
"""
# What takes a while as a reader runs it, and what is run in its place.
SHORTENED = {
    _LOAD: _LOAD + _FIRST_LAYERS,
    "METHODS = (4, 2, 1),": "METHODS = (1,),",
    "total_steps=300": "total_steps=40",
    "eval_every=50": "eval_every=20",
    "max_new_tokens=110": "max_new_tokens=16",
    "HEALING_STEPS = 60": "HEALING_STEPS = 4",
    "STEPS = 32": "STEPS = 1",
    "max_new_tokens=60": "max_new_tokens=8",
    "check_decoder(spec, examples=4)": "check_decoder(spec, examples=1)",
}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _executed(notebook: Any, folder: Path) -> Any:
    """Returns a notebook as it is after all its cells ran, in a folder."""
    notebook = copy.deepcopy(notebook)
    for cell in _code(notebook):
        cell.outputs = []
        for long, short in SHORTENED.items():
            cell.source = cell.source.replace(long, short)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _kinds(cell: Any) -> list[tuple[str, ...]]:
    """Returns of what kind each output of a cell is, without what it says."""
    return [
        (output.output_type, output.get("name", ""), *sorted(output.get("data", ())))
        for output in cell.outputs
    ]


@every_notebook
def test_notebook_gives_the_kinds_of_output_that_it_shows(
    path, tmp_path, monkeypatch, request
):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # the checkout's own code
    shown = nbformat.read(path, as_version=4)
    if any("smollm2-135m" in cell.source for cell in _code(shown)):
        request.getfixturevalue("smollm2_file")  # here, since a download shows a bar
    given = _executed(shown, tmp_path)
    for stored, cell in zip(_code(shown), _code(given), strict=True):
        assert _kinds(cell) == _kinds(stored), cell.source


def test_shortened_words_are_those_of_notebooks():
    cells = [c for p in NOTEBOOKS for c in _code(nbformat.read(p, as_version=4))]
    for words in SHORTENED:
        assert any(words in cell.source for cell in cells), words


@every_notebook
def test_notebook_is_stored_as_it_was_executed_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in _code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {kind for cell in _code(notebook) for kind, *_ in _kinds(cell)}
    assert "error" not in kinds
    assert kinds, f"{path.name} shows nothing"


@every_notebook
def test_notebook_says_nothing_of_the_machine_that_executed_it(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in _code(notebook):
        assert "execution" not in cell.metadata
        assert all(output.get("name") != "stderr" for output in cell.outputs)


def test_there_is_a_notebook():
    assert NOTEBOOKS


def test_executed_fails_where_a_cell_raises(tmp_path):
    cell = nbformat.v4.new_code_cell("1 / 0")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        _executed(notebook, tmp_path)
