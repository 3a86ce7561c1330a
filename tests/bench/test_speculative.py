"""Guessing beside plain decoding: the figures, and that the work is what it says."""

from __future__ import annotations

import itertools
import json

import pytest

from haiku_mqa import generate
from haiku_mqa.bench.speculative import COLUMNS, run_speculative
from haiku_mqa.generation import Draft, PromptLookup
from tests.models import example, example_params

MODEL, PARAMS = example("multi_query"), example_params("multi_query")
PROMPT = [1, 2, 3, 1, 2, 3, 1]
LOOKUP = PromptLookup(ngram=2, num_tokens=3)


@pytest.fixture(scope="module")
def found():
    # The clock is read around each run: those that compile take no time, the first
    # after them takes 1 s, the second 2 s, and on.
    taken = itertools.chain([0] * 3, itertools.count(1))
    ticks = itertools.accumulate(
        itertools.chain.from_iterable((0, seconds) for seconds in taken)
    )
    return run_speculative(
        MODEL,
        PARAMS,
        PROMPT,
        lookup=LOOKUP,
        draft=Draft(MODEL, PARAMS, num_tokens=3),
        new_tokens=9,
        repeats=3,
        clock=lambda: float(next(ticks)),
    )


def test_ways_take_turns_and_figures_are_medians(found):
    plain, lookup, draft = found.data["ways"]
    assert [way["name"] for way in (plain, lookup, draft)] == [
        "plain",
        "prompt lookup",
        "draft",
    ]
    runs = [way["tokens_per_second_runs"] for way in (plain, lookup, draft)]
    assert runs == [[9 / (first + 3 * i) for i in range(3)] for first in (1, 2, 3)]
    assert plain["tokens_per_second"] == 9 / 4
    assert draft["tokens_per_second"] == 9 / 6
    assert found.rows[2][:3] == ("draft", "1.5", "0.67x")


def test_shares_are_of_what_was_proposed(found):
    plain, lookup, draft = found.data["ways"]
    assert "acceptance" not in plain
    assert lookup["acceptance"] == lookup["accepted"] / lookup["proposed"]
    assert (draft["acceptance"], draft["calls"], draft["tokens_per_call"]) == (1, 2, 4)
    assert found.rows[2][3:] == ("100%", "4.00", "9/9")
    assert len(found.columns) == len(COLUMNS) == len(found.rows[0])
    assert json.dumps(found.to_dict())


def test_every_way_chooses_the_plain_tokens(found):
    assert [way["same_tokens"] for way in found.data["ways"]] == [9, 9, 9]


def test_tokens_that_part_are_counted_up_to_there(monkeypatch):
    def other(*args, **options):
        result = generate(*args, **options)
        result.tokens[0][4] += 1
        return result

    monkeypatch.setattr("haiku_mqa.bench.speculative.generate", other)
    options = {"lookup": LOOKUP, "new_tokens": 9, "repeats": 1}
    result = run_speculative(MODEL, PARAMS, PROMPT, **options)
    assert len(result.rows) == 2
    assert result.rows[1][-1] == "4/9"


def test_draft_that_does_not_fit_is_refused_before_the_work(monkeypatch):
    monkeypatch.delattr("haiku_mqa.bench.speculative.generate")
    small = Draft(example("learned"), example_params("learned"))
    with pytest.raises(ValueError, match="the draft's max_length must be at least 47"):
        run_speculative(MODEL, PARAMS, PROMPT, draft=small, new_tokens=40)
