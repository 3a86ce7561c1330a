"""What is told of a text: the library's own figures, as a table or as JSON."""

from __future__ import annotations

import json
import math

import pytest

from haiku_mqa import load_pretrained
from haiku_mqa.training import evaluate, read_corpus, split
from tests.folders import write_model_folder

TEXT = "To be, or not to be: that is the question.\n" * 3


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT)
    return path


def library(folder, text, **options):
    loaded = load_pretrained(folder)
    ids = loaded.tokenizer.encode(text)
    size = len(text[1:].encode())
    return evaluate(loaded.model, loaded.params, ids, num_bytes=size, **options)


def test_json_is_what_the_library_finds(run, trained, file):
    words = ("--context", 16, "--stride", 4)
    done = run("eval", "--model", trained, file, *words, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    result = library(trained, TEXT, context=16, stride=4)
    assert told == {
        "model": str(trained),
        "text": "hamlet.txt",
        "loss": pytest.approx(result.loss),
        "perplexity": pytest.approx(math.exp(result.loss)),
        "bits_per_byte": pytest.approx(result.loss / math.log(2)),
        "tokens": len(TEXT) - 1,
        "bytes": len(TEXT) - 1,
        "context": 16,
        "stride": 4,
    }


def test_table_has_a_head_and_a_row(run, trained, file):
    done = run("eval", "--model", trained, file)
    assert done.code == 0, done.err
    head, row = done.out.splitlines()
    assert head.split()[:4] == ["loss", "perplexity", "bits", "per"]
    result = library(trained, TEXT)
    assert row.split() == [
        f"{result.loss:.4f}",
        f"{result.perplexity:.3f}",
        f"{result.bits_per_byte:.4f}",
        "128",
        "128",
        "32",
        "16",
    ]
    assert len(head) == len(row)
    assert done.err == f"haiku-mqa: loading {trained}\n"


def test_batch_size_changes_nothing(run, trained, file):
    words = ("eval", "--model", trained, file)
    assert run(*words).out == run(*words, "--batch-size", 3).out


def test_text_is_the_validation_part_where_none_is_given(run, trained):
    done = run("eval", "--model", trained, "--stride", 32, "--batch-size", 64, "--json")
    assert done.code == 0, done.err
    assert "the last tenth of the corpus in the package" in done.err
    told = json.loads(done.out)
    held_out = split(read_corpus())[1]
    assert told["text"] == held_out.name
    assert told["tokens"] == held_out.num_characters - 1


def test_bytes_are_those_of_the_text_where_a_token_is_several(run, tiny, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("é the the the")
    told = json.loads(run("eval", "--model", tiny, file, "--json").out)
    ids = load_pretrained(tiny).tokenizer.encode("é the the the")
    assert told["tokens"] == len(ids) - 1 < 13
    assert told["bytes"] == 13  # of 14; the first token is a byte of é


def test_documents_of_a_folder_are_read_one_after_another(run, trained, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("to be")
    told = json.loads(run("eval", "--model", trained, tmp_path, "--json").out)
    assert told["tokens"] == 9


def test_character_that_the_model_does_not_know_is_misuse(run, trained, tmp_path):
    file = tmp_path / "cafe.txt"
    file.write_text("café")
    done = run("eval", "--model", trained, file)
    assert done.code == 2
    assert done.error.startswith("cafe.txt: text has 'é' (U+00E9) at character 3, ")


def test_model_that_cannot_read_the_corpus_in_the_package_asks_for_a_file(
    run, tmp_path
):
    folder = write_model_folder(tmp_path / "run")
    done = run("eval", "--model", folder)
    assert done.code == 2
    assert done.error.endswith("; give a FILE that it can read")


def test_model_without_a_tokenizer_is_misuse(run, tmp_path):
    folder = write_model_folder(tmp_path / "run")
    (folder / "tokenizer.json").unlink()
    done = run("eval", "--model", folder)
    assert done.code == 2
    assert "has no tokenizer to read text with" in done.error


def test_text_without_a_token_to_predict_is_misuse(run, trained, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("x")
    done = run("eval", "--model", trained, file)
    assert done.code == 2
    assert "tokens must be at least 2" in done.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", 33], "context must be a whole number from 1 to 32, got 33"),
        (["--stride", 33], "stride must be a whole number from 1 to 32, got 33"),
    ],
)
def test_context_beyond_the_models_is_misuse(run, trained, file, words, message):
    done = run("eval", "--model", trained, file, *words)
    assert done.code == 2
    assert done.error == message
