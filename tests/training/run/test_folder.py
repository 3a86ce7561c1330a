from __future__ import annotations

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest

from haiku_mqa import Model, model_folder
from haiku_mqa.errors import FormatError
from haiku_mqa.text import CharacterTokenizer
from haiku_mqa.training import Corpus
from haiku_mqa.training.run.folder import RunFolder
from tests.training.run.runs import CONFIG, CORPUS, Child

TOKENIZER = CharacterTokenizer(CORPUS.text)
DECODER = CONFIG.decoder_config(TOKENIZER.vocab_size)


@pytest.fixture
def begun(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.begin(CONFIG, DECODER, CORPUS, TOKENIZER)
    return folder


def _names(path):
    return sorted(p.name for p in path.iterdir())


# --- What is in it --------------------------------------------------------------------


def test_folder_tells_what_the_run_is_of(begun):
    run = json.loads((begun.path / "run.json").read_text())
    assert run["format"] == "haiku_mqa run 1"
    assert run["config"] == CONFIG.to_dict()
    assert run["corpus"] == CORPUS.sha256
    assert {"haiku_mqa", "jax", "python"} <= set(run["versions"])
    assert begun.tokenizer() == TOKENIZER


def test_folder_is_a_model_folder(begun):
    assert model_folder.is_model_folder(begun.path)
    assert model_folder.read_config(begun.path) == DECODER


def test_run_that_was_killed_before_it_began_begins_anew(begun):
    (begun.path / "run.json").unlink()
    (begun.path / ".config.json-0a1b2c3d.part").write_text("half")
    begun.remove_leftovers()
    begun.begin(CONFIG, DECODER, CORPUS, TOKENIZER)
    assert begun.has_run
    assert not list(begun.path.glob(".*.part"))


def test_files_of_something_else_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    folder = RunFolder(tmp_path)
    with (
        pytest.raises(ValueError, match=r"empty or hold a run, and it has thesis\.tex"),
        folder.locked(),
    ):
        folder.begin(CONFIG, DECODER, CORPUS, TOKENIZER)
    assert _names(tmp_path) == ["thesis.tex"]


def test_path_of_a_file_is_refused(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    for inside in (path, path / "deeper"):
        with (
            pytest.raises(ValueError, match="must be a folder"),
            RunFolder(inside).locked(),
        ):
            pass


def test_weights_that_find_no_room_leave_those_before(begun, monkeypatch):
    params = Model(DECODER).init(jax.random.key(0))
    begun.write_weights(params, {"step": "4"})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    other = jax.tree.map(lambda x: x + 1, params)
    told = r"model\.safetensors could not be written: No space left on device; it is as"
    with pytest.raises(OSError, match=told) as caught:
        begun.write_weights(other, {"step": "8"})
    assert caught.value.errno == errno.ENOSPC
    kept = model_folder.read_weights(begun.path, DECODER)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert not list(begun.path.glob(".*.part"))


# --- Another run ----------------------------------------------------------------------


def test_same_run_is_gone_on_with(begun):
    begun.check(CONFIG, CORPUS)


def test_every_field_that_differs_is_listed(begun):
    other = dataclasses.replace(
        CONFIG,
        optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=3e-4),
        model={**CONFIG.model, "d_ff": 32},
        seed=4,
    )
    with pytest.raises(ValueError, match="holds another run") as caught:
        begun.check(other, CORPUS)
    message = str(caught.value)
    assert "optimizer.learning_rate: 0.01 in the folder, 0.0003 asked for" in message
    assert "model.d_ff: 16 in the folder, 32 asked for" in message
    assert "seed: 3 in the folder, 4 asked for" in message
    assert message.count("asked for") == 3


def test_field_that_only_one_of_them_has_is_listed(begun):
    other = dataclasses.replace(CONFIG, model={**CONFIG.model, "num_kv_heads": 2})
    with pytest.raises(ValueError, match=r"num_kv_heads: (nothing|1) in the folder, 2"):
        begun.check(other, CORPUS)


def test_other_text_is_another_run(begun):
    other = Corpus((CORPUS.text + "!",), name=CORPUS.name)
    with pytest.raises(ValueError, match=r"corpus: sha256 \w+… in the folder, sha256"):
        begun.check(CONFIG, other)


def test_same_text_from_elsewhere_is_the_same_run(begun):
    data = dataclasses.replace(CONFIG.data, source="elsewhere/hamlet.txt")
    begun.check(dataclasses.replace(CONFIG, data=data), CORPUS)


def test_other_tokenizer_is_damage(begun):
    CharacterTokenizer("abc").save(begun.path / "tokenizer.json")
    with pytest.raises(FormatError, match="is not the one that the run began with"):
        begun.check(CONFIG, CORPUS)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "haiku_mqa run 1"}', '{"format": "haiku']
)
def test_damaged_run_file_is_told_of(begun, text):
    (begun.path / "run.json").write_text(text)
    with pytest.raises(FormatError, match=r"run\.json is damaged"):
        begun.check(CONFIG, CORPUS)


# --- Whose it is ----------------------------------------------------------------------


def test_second_process_is_refused_until_the_first_is_gone(tmp_path, cache):
    child = Child(tmp_path / "run", cache, steps=10_000, pace=0.01)
    try:
        assert child.wait_for("step 1"), child.errors
        with (
            pytest.raises(ValueError, match=f"in use by .*, {child.process.pid}:"),
            RunFolder(tmp_path / "run").locked(),
        ):
            pass
    finally:
        child.kill()
    with RunFolder(tmp_path / "run").locked():
        pass


def test_second_run_in_one_process_is_refused(begun):
    with begun.locked(), pytest.raises(ValueError, match="in use"), begun.locked():
        pass
    with begun.locked():
        pass


def test_folder_without_a_run_is_left_as_it_was_found(tmp_path):
    with RunFolder(tmp_path / "new").locked():
        assert _names(tmp_path / "new") == ["lock"]
    assert _names(tmp_path) == []
    with RunFolder(tmp_path).locked():
        pass
    assert tmp_path.exists()
