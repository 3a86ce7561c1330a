"""The bench of the engine: both serve the same load, and every figure is told."""

from __future__ import annotations

import json

import pytest

from haiku_mqa.bench.engine import Redrawn, Served, _results, draw_load, run_engine
from tests.models import example, example_params

SIZES = {"requests": 5, "slots": 2, "prompt_tokens": 6, "new_tokens": 8, "repeats": 2}


def test_load_has_the_lengths_that_are_said_and_is_the_same_for_a_seed():
    sizes = {"requests": 200, "prompt_tokens": 7, "new_tokens": 4}
    load = draw_load(29, seed=3, **sizes)
    assert {len(each.prompt) for each in load} == {4, 5, 6, 7}
    assert {each.new_tokens for each in load} == {2, 3, 4}
    assert {token for each in load for token in each.prompt} == set(range(29))
    assert load == draw_load(29, seed=3, **sizes)
    assert load != draw_load(29, seed=4, **sizes)


@pytest.fixture(scope="module")
def found():
    name = "grouped"
    return run_engine(example(name), example_params(name), name="tiny", **SIZES)


def test_all_requests_get_the_same_tokens_both_ways(found):
    one, engine = found.data["programs"]
    assert one["same_tokens"] == engine["same_tokens"] == 5 * 2
    assert [len(each["seconds_runs"]) for each in (one, engine)] == [2, 2]
    for each in (one, engine):
        assert 0 < each["first_token_seconds"] <= each["last_token_seconds"]
        assert each["last_token_seconds"] <= each["seconds"]


def test_findings_hold_what_a_reader_needs_to_repeat_them(found):
    data = json.loads(json.dumps(found.to_dict()))
    assert data["command"] == (
        "haiku-mqa bench engine --model tiny --requests 5 --slots 2 --prompt-tokens 6 "
        "--new-tokens 8 --repeats 2 --seed 0"
    )
    lines = found.markdown().splitlines()
    assert len(lines) == 2 + 2
    assert {line.count("|") for line in lines} == {len(found.columns) + 1}


def test_figures_are_medians_of_what_was_timed():
    def served(seconds, tokens):
        return Served(seconds, (1.0, 3.0), (2.0, seconds), tokens)

    runs = {
        "a": [served(s, ((1, 2), (3,))) for s in (6.0, 9.0, 30.0)],
        "b": [served(s, ((1, 2), (4,))) for s in (1.0, 3.0, 4.0)],
    }
    a, b = _results(runs)
    assert (a["seconds"], a["ratio"], a["same_tokens"]) == (9.0, 1.0, 2 * 3)
    assert (b["seconds"], b["ratio"], b["same_tokens"]) == (3.0, 3.0, 1 * 3)
    assert b["ratio_runs"] == [6.0, 3.0, 7.5]
    assert b["new_tokens_per_second"] == 1.0
    assert (b["first_token_seconds"], b["last_token_seconds"]) == (2.0, 2.5)


def test_prompts_of_each_repeat_are_others_of_the_same_lengths():
    load = draw_load(29, seed=3, requests=9, prompt_tokens=7, new_tokens=4)
    loads = Redrawn(load, vocab_size=29, seed=3)
    drawn = [load, loads.next(), loads.next()]
    assert len({each.prompt for load in drawn for each in load}) == 27
    lengths = [[(len(e.prompt), e.new_tokens) for e in load] for load in drawn]
    assert lengths[0] == lengths[1] == lengths[2]


def test_verb_prints_writes_and_draws_what_it_found(tmp_path, capsys):
    from haiku_mqa.cli import main

    file, picture = tmp_path / "engine.json", tmp_path / "engine.png"
    words = ["--requests", "3", "--slots", "2", "--prompt-tokens", "4"]
    words += ["--new-tokens", "4", "--repeats", "1", "--json", str(file)]
    words += ["--plot", str(picture)]
    assert main(["bench", "engine", "--model", "shakespeare-mqa", *words]) == 0
    data = json.loads(file.read_text())
    assert data["title"] in capsys.readouterr().out
    assert [each["same_tokens"] for each in data["programs"]] == [3, 3]
    assert picture.stat().st_size > 10_000
