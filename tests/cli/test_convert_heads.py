"""Converted models: a folder that loads, and a table that tells what became of it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa import model_folder
from haiku_mqa.text import CharacterTokenizer
from haiku_mqa.training import read_corpus
from tests.folders import write_model_folder
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture
def multi_head(tmp_path):
    """The folder of a tiny multi-head model."""
    tokenizer = CharacterTokenizer(read_corpus().text)
    folder = tmp_path / "multi_head"
    return write_model_folder(folder, tokenizer=tokenizer, num_heads=4, num_kv_heads=4)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "converted"


def rows(printed):
    """Returns the table's rows: their names to their cells."""
    lines = printed.partition("\n\n")[0].splitlines()
    assert lines[0].split() == ["before", "after"]
    cells = [line.rsplit(maxsplit=2) for line in lines[1:]]
    return {name.strip(): (before, after) for name, before, after in cells}


@pytest.mark.parametrize("method", ["mean", "first", "random"])
def test_folder_is_what_the_library_makes(run, multi_head, out, method):
    words = ("--method", method, "--seed", 5, "--characters", 100)
    done = run("convert-heads", multi_head, out, "--kv-heads", 1, *words)
    assert done.code == 0, done.err
    source, made = hm.load_pretrained(multi_head), hm.load_pretrained(out)
    config, params = hm.convert_heads(
        source.model.config, source.params, 1, method, rng=jax.random.key(5)
    )
    assert made.model.config == config
    assert made.tokenizer == source.tokenizer
    jax.tree.map(np.testing.assert_array_equal, made.params, params)
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert done.out.endswith(
        f"\n\nwrote {out}, which --model takes, and train --init to heal it\n"
    )


def test_table_tells_heads_sizes_and_losses(run, multi_head, out):
    words = ("--kv-heads", 2, "--characters", 200)
    told = rows(run("convert-heads", multi_head, out, *words).out)
    assert told["query heads"] == ("4", "4")
    assert told["key/value heads"] == ("4", "2")
    sizes = [hm.load_pretrained(f).params for f in (multi_head, out)]
    for column, params in enumerate(sizes):
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert told["parameters"][column] == f"{count:,}"
    before, after = map(float, told["loss"])
    assert before != after


def test_cache_is_told_in_bytes(run, multi_head, out):
    words = ("--kv-heads", 1, "--characters", 100)
    printed = run("convert-heads", multi_head, out, *words).out
    # Keys and values of 4 heads of 4 floats, and two numbers: where a token stands.
    [line] = [x for x in printed.splitlines() if x.startswith("cache per token")]
    assert line.split()[3:] == ["136", "B", "40", "B"]


def test_loss_is_the_same_where_heads_are_copied(run, trained, out):
    told = rows(
        run("convert-heads", trained, out, "--kv-heads", 2, "--characters", 100).out
    )
    assert told["key/value heads"] == ("1", "2")
    assert told["loss"][0] == told["loss"][1]


def test_loss_is_that_of_the_text_that_is_named(run, multi_head, out, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("to be or not to be " * 9)
    words = ("--kv-heads", 1, "--text", file, "--characters", 40)
    told = rows(run("convert-heads", multi_head, out, *words).out)
    loaded = hm.load_pretrained(multi_head)
    ids = loaded.tokenizer.encode(file.read_text()[:40])
    loss = hm.training.evaluate(loaded.model, loaded.params, ids).loss
    assert told["loss"][0] == f"{loss:.4f}"


def test_tokenizer_of_a_model_file_is_not_written_and_that_is_said(run, out, tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    done = run("convert-heads", file, out, "--kv-heads", 4, "--characters", 100)
    assert done.code == 0, done.err
    assert "no tokenizer was written" in done.err
    assert not (out / "tokenizer.json").exists()
    assert "loss" in rows(done.out)
    assert hm.load_pretrained(out).model.config.num_kv_heads == 4


def test_model_that_cannot_read_the_text_is_converted_without_losses(
    run, out, tmp_path
):
    folder = write_model_folder(tmp_path / "run", num_kv_heads=2)
    done = run("convert-heads", folder, out, "--kv-heads", 1)
    assert done.code == 0, done.err
    assert "no loss is measured, --text can name another text: text has" in done.err
    assert "loss" not in rows(done.out)
    assert model_folder.is_model_folder(out)


# --- What is refused ------------------------------------------------------------------


def test_text_that_is_named_and_cannot_be_read_is_misuse(run, trained, out, tmp_path):
    file = tmp_path / "cafe.txt"
    file.write_text("café")
    done = run("convert-heads", trained, out, "--kv-heads", 2, "--text", file)
    assert done.code == 2
    assert done.error.startswith(f"{file}: text has 'é'")
    assert not out.exists()


def test_folder_that_is_not_empty_is_misuse_and_stays_as_it_is(run, trained):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    done = run("convert-heads", trained, trained, "--kv-heads", 2)
    assert done.code == 2
    assert done.error == (
        f"OUT must be a new or an empty folder, and {trained} is not empty"
    )
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_empty_folder_will_do(run, trained, tmp_path):
    words = ("--kv-heads", 2, "--characters", 50)
    (tmp_path / "empty").mkdir()
    assert run("convert-heads", trained, tmp_path / "empty", *words).code == 0


def test_out_that_is_a_file_is_a_failure(run, trained, tmp_path):
    (tmp_path / "file").write_text("x")
    done = run("convert-heads", trained, tmp_path / "file", "--kv-heads", 2)
    assert done.code == 1
    assert done.error == f"{tmp_path / 'file'}: Not a directory"


def test_number_of_heads_that_fits_neither_way_is_misuse(run, multi_head, out):
    done = run("convert-heads", multi_head, out, "--kv-heads", 3)
    assert done.code == 2
    assert "num_kv_heads must divide num_heads = 4, got 3" in done.error
    assert not out.exists()
