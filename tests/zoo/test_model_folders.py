"""A model folder, as a training run's is, loads by its path."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa import model_folder
from haiku_mqa.text import BytePairTokenizer, ByteTokenizer, CharacterTokenizer
from haiku_mqa.zoo.paths import describe_path
from tests.folders import CORPUS, write_model_folder
from tests.models import EXAMPLES, example_logits, example_params, example_tokens
from tests.tiny_gguf import write_tiny_gguf

SAME = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}  # of logits


@pytest.fixture
def folder(tmp_path):
    return write_model_folder(tmp_path / "runs" / "First run")


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kind_of_model_loads_as_it_was(name, tmp_path):
    config = EXAMPLES[name]
    write_model_folder(tmp_path / "model", config, params=example_params(name))
    loaded = hm.load_pretrained(tmp_path / "model", dtype=config.dtype)
    assert loaded.model.config == config
    logits = loaded.model.apply(loaded.params, None, example_tokens(name)).logits
    np.testing.assert_allclose(logits, example_logits(name), atol=SAME[config.dtype])
    assert loaded.tokenizer is None


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_become_the_dtype_that_is_asked_for(stored, dtype, tmp_path):
    params = jax.tree.map(lambda x: x.astype(stored), example_params("grouped"))
    config = dataclasses.replace(EXAMPLES["grouped"], param_dtype=stored)
    write_model_folder(tmp_path / "model", config, params=params)
    loaded = hm.load_pretrained(tmp_path / "model", dtype=dtype)
    assert (loaded.model.config.dtype, loaded.model.config.param_dtype) == (dtype,) * 2

    def same(found, written):
        assert found.dtype == dtype
        assert bool((found == written.astype(dtype)).all())

    jax.tree.map(same, loaded.params, params)


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharacterTokenizer(CORPUS),
        ByteTokenizer(),
        BytePairTokenizer.train([CORPUS], 262),
    ],
    ids=lambda tokenizer: tokenizer.kind,
)
def test_tokenizer_comes_with_the_model(tokenizer, tmp_path):
    loaded = hm.load_pretrained(
        write_model_folder(tmp_path / "model", tokenizer=tokenizer)
    )
    assert loaded.tokenizer == tokenizer
    ids = loaded.tokenizer.encode("to be")
    result = hm.generate(loaded.model, loaded.params, [ids], max_new_tokens=3)
    assert len(loaded.tokenizer.decode(result.tokens[0])) > 0


def test_path_may_be_a_string_or_relative_or_end_in_a_slash(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for path in (str(folder), f"{folder}/", "First run", folder):
        assert hm.load_pretrained(path).metadata.source


def test_metadata_tell_what_can_be_done(folder):
    metadata = hm.load_pretrained(folder).metadata
    assert metadata.capabilities == ("logits", "cache", "pretrained")
    assert metadata.source == str(folder)


# --- What is refused ------------------------------------------------------------------


def test_path_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file") as error:
        hm.load_pretrained(tmp_path / "none")
    assert error.value.filename == str(tmp_path / "none")


def test_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a model folder.*which has no config\.json"):
        hm.load_pretrained(tmp_path)


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"a model folder.*, or a \.gguf file, got"):
        hm.load_pretrained(tmp_path / "model.bin")


def test_folder_of_another_program_is_a_format_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": "of another"}))
    with pytest.raises(hm.FormatError, match="is no decoder's config"):
        hm.load_pretrained(tmp_path)


def test_weights_of_another_config_are_a_format_error(folder):
    config = model_folder.read_config(folder)
    model_folder.write_config(folder, dataclasses.replace(config, d_ff=17))
    with pytest.raises(hm.FormatError, match=r"feed_forward/\w+/w is \[16, 16\], not"):
        hm.load_pretrained(folder)


def test_tokenizer_of_another_model_is_a_format_error(folder):
    ByteTokenizer().save(folder / "tokenizer.json")
    with pytest.raises(hm.FormatError, match=r"it has 256 tokens, and vocab_size is"):
        hm.load_pretrained(folder)


def test_tokenizer_that_is_damaged_is_a_format_error(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(hm.FormatError, match=r"tokenizer\.json is no tokenizer"):
        hm.load_pretrained(folder)


def test_unknown_dtype_is_refused_by_name(folder):
    with pytest.raises(ValueError, match="dtype 'float31'"):
        hm.load_pretrained(folder, dtype="float31")


# --- Describing -----------------------------------------------------------------------


def test_folder_is_described_without_its_weights(folder):
    spec = describe_path(folder)
    (folder / "model.safetensors").unlink()
    assert describe_path(folder).config == spec.config
    assert spec.name == "first-run"
    assert spec.version == "unversioned"
    assert spec.init_cache(1, 8).capacity == 8


def test_description_tells_the_step_that_weights_are_of(tmp_path):
    told = {"step": "250"}
    folder = write_model_folder(tmp_path / "model", metadata=told)
    assert describe_path(folder).version == "step 250"


def test_description_of_a_folder_loads_it(folder):
    spec = describe_path(folder)
    loaded = hm.load_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, spec.load_params(), loaded.params)
    assert spec.load_tokenizer() == loaded.tokenizer


def test_file_is_described_as_it_loads(tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    spec, loaded = describe_path(file), hm.load_pretrained(file)
    assert spec.config == loaded.model.config
    assert spec.metadata == loaded.metadata
    same = jax.tree.map(
        lambda a, b: bool((jnp.asarray(a) == b).all()),
        spec.load_params(),
        loaded.params,
    )
    assert jax.tree.all(same)
