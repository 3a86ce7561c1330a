"""The verbs that train: that options arrive, and findings are printed and written."""

from __future__ import annotations

import functools
import json

import pytest

from haiku_mqa.bench import (
    ainslie,
    nanogpt,
    plans,
    scaling,
    shazeer,
    training_speed,
)
from haiku_mqa.bench.findings import Findings
from tests.bench.tiny import CORPUS, SCALE, decode_with

_SHORT = ("--steps", 20, "--context", 5, "--batch-size", 2, "--repeats", 1)
WORDS = {"shazeer": (*_SHORT, "--seeds", 1), "ainslie": _SHORT}
_TINY = {"scale": SCALE, "corpus": CORPUS, "decode_with": decode_with}


@pytest.fixture(scope="module")
def known():
    """What experiments found, by the options they were run with."""
    return {}


@pytest.fixture
def quick(monkeypatch, known, compiled_once):
    """Experiments at a scale that takes no time, and none is run twice."""

    def once(run, **options):
        key = (run.__name__, *sorted(options.items()))
        if key not in known:
            known[key] = run(**options, **_TINY)
        return known[key]

    for module, name in ((shazeer, "run_shazeer"), (ainslie, "run_ainslie")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, functools.partial(once, run))


@pytest.mark.parametrize("verb", ["shazeer", "ainslie"])
def test_paper_is_repeated_printed_and_written(run, quick, tmp_path, verb):
    file = tmp_path / "found.json"
    done = run("bench", verb, *WORDS[verb], "--json", file)
    assert done.code == 0, done.err
    data = json.loads(file.read_text())
    assert data["settings"]["context"] == 5
    assert "decode µs/token" in done.out
    assert all(note in done.out for note in data["notes"])
    assert "multi-head" in done.err  # the bar


def test_markdown_is_the_table_alone(run, quick):
    done = run("bench", "shazeer", *WORDS["shazeer"], "--markdown")
    assert all(line.startswith("| ") for line in done.out.splitlines())
    assert len(done.out.splitlines()) > 3


def test_picture_is_written(run, quick, tmp_path):
    file = tmp_path / "ainslie.png"
    assert run("bench", "ainslie", *WORDS["ainslie"], "--plot", file).code == 0
    assert file.stat().st_size > 10_000


def test_picture_of_another_kind_is_refused_before_the_work(run, tmp_path):
    done = run("bench", "ainslie", "--plot", tmp_path / "ainslie.gif")
    assert done.code == 2
    assert done.error.startswith("--plot must end in .pdf, .png, .svg")


@pytest.mark.parametrize("verb", ["train", "nanogpt", "shazeer", "ainslie"])
def test_file_that_cannot_be_written_is_told_before_the_work(run, tmp_path, verb):
    done = run("bench", verb, "--json", tmp_path / "nowhere/found.json")
    assert done.code == 1
    assert "No such file or directory" in done.error


def _findings(**options):
    return Findings(
        title="t", columns=("a", "b"), rows=(("1", "2"),), notes=("n",), data=options
    )


def test_options_of_train_arrive(run, monkeypatch, tmp_path):
    monkeypatch.setattr(training_speed, "run_training_speed", _findings)
    file = tmp_path / "found.json"
    words = ("--steps", 3, "--repeats", 2, "--torch-python", "p", "--json", file)
    assert run("bench", "train", *words).code == 0
    data = json.loads(file.read_text())
    assert (data["steps"], data["repeats"], data["torch_python"]) == (3, 2, "p")


def test_options_of_nanogpt_arrive(run, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        nanogpt, "run_nanogpt", lambda **o: (seen.update(o), _findings())[1]
    )
    words = ("--seeds", 2, "--steps", 7, "--nanogpt", "f", "--nanogpt-python", "p")
    assert run("bench", "nanogpt", *words).code == 0
    assert (seen["seeds"], seen["steps"]) == (2, 7)
    assert (str(seen["nanogpt"]), seen["nanogpt_python"]) == ("f", "p")


def test_options_of_plan_and_scaling_arrive(run, monkeypatch, tmp_path):
    monkeypatch.setattr(plans, "run_plans", _findings)
    monkeypatch.setattr(scaling, "run_scaling", _findings)
    file = tmp_path / "found.json"
    assert run("bench", "plan", "--repeats", 2, "--json", file).code == 0
    assert json.loads(file.read_text())["repeats"] == 2
    words = ("--rows", 4, "--steps", 3, "--repeats", 2, "--json", file)
    assert run("bench", "scaling", *words).code == 0
    data = json.loads(file.read_text())
    assert (data["rows"], data["steps"], data["repeats"]) == (4, 3, 2)
