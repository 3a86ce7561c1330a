"""The verb that measures guessing: its options, what it prints, what it refuses."""

from __future__ import annotations

import json

from tests.folders import write_model_folder
from tests.models import EXAMPLES

_QUICK = ("--new-tokens", 4, "--repeats", 1, "--lookup-tokens", 2)


def test_ways_are_printed_and_every_figure_is_written(run, trained, tmp_path):
    file = tmp_path / "found.json"
    words = ("--model", trained, "--draft", trained, "--draft-tokens", 2)
    words += ("--prompt", "to be or to be", "--ngram", 2, "--json", file)
    done = run("bench", "speculative", *words, *_QUICK)
    assert done.code == 0, done.err
    data = json.loads(file.read_text())
    assert [way["name"] for way in data["ways"]] == ["plain", "prompt lookup", "draft"]
    assert data["ways"][2]["acceptance"] == 1
    assert data["prompt_tokens"] == len("to be or to be")
    assert data["settings"]["draft_tokens"] == data["settings"]["ngram"] == 2
    assert "beside plain" in done.out
    assert all(note in done.out for note in data["notes"])


def test_prompt_is_of_random_tokens_unless_a_text_is_given(run, tiny):
    words = ("--model", tiny, "--prompt-tokens", 5, *_QUICK)
    done = run("bench", "speculative", *words)
    assert done.code == 0, done.err
    assert "5 prompt tokens, 4 new tokens" in done.out
    assert "draft" not in done.out


def test_prompt_without_room_is_refused(run, trained):
    words = ("--model", trained, "--prompt-tokens", 30, "--new-tokens", 4)
    done = run("bench", "speculative", *words)
    assert done.code == 2
    assert "must be at most 32 tokens together" in done.error


def test_text_needs_a_tokenizer(run, tmp_path):
    folder = write_model_folder(tmp_path / "bare", EXAMPLES["multi_query"])
    done = run("bench", "speculative", "--model", folder, "--prompt", "to be")
    assert done.code == 2
    assert "--prompt needs a model with a tokenizer, and" in done.error


def test_draft_over_other_tokens_is_refused(run, trained, tiny):
    words = ("--model", trained, "--draft", tiny, "--prompt-tokens", 4, *_QUICK)
    done = run("bench", "speculative", *words)
    assert done.code == 2
    assert "the draft's vocab_size must be the model's" in done.error


def test_draft_of_an_unknown_name_is_refused_before_anything_is_loaded(run):
    done = run("bench", "speculative", "--model", "smollm2-135m", "--draft", "smollm")
    assert done.code == 2
    assert "did you mean" in done.error
