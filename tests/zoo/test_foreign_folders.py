"""Folders of Hugging Face's libraries stand wherever a model's name is taken."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa.errors import FormatError
from haiku_mqa.quantization import is_quantized
from haiku_mqa.zoo.paths import describe_path
from tests.models import drawn_params
from tests.pretrained.hf_tokenizers import tiny_tokenizer, write_tokenizer

CONFIG = hm.DecoderConfig(
    vocab_size=264, num_layers=1, num_heads=2, d_model=16, d_ff=16, max_length=64
)


@pytest.fixture(scope="module")
def params():
    return drawn_params(hm.build(CONFIG))


@pytest.fixture
def folder(tmp_path, params):
    path = tmp_path / "Tiny Llama"
    hm.save_pretrained(path, CONFIG, params, family="llama")
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return write_tokenizer(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_loads_as_what_it_is(dtype, folder, params):
    loaded = hm.load_pretrained(folder, dtype=dtype)
    assert loaded.model.config == dataclasses.replace(
        CONFIG, dtype=dtype, param_dtype=dtype
    )
    jax.tree.map(
        lambda found, drawn: np.testing.assert_array_equal(found, drawn.astype(dtype)),
        loaded.params,
        params,
    )
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the end")) == "the end"


def test_metadata_are_what_the_folder_says(folder):
    about = hm.load_pretrained(folder).metadata
    assert about.license == "apache-2.0"
    assert about.source == str(folder)
    assert about.description == f"a decoder of the family llama in {folder}"
    (folder / "README.md").unlink()
    assert hm.load_pretrained(folder).metadata.license == ""


def test_matrices_are_quantized_one_by_one(folder, params):
    loaded = hm.load_pretrained(folder, quantize="int8")
    wanted = hm.quantize_params(loaded.model, params)
    assert is_quantized(loaded.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted)


def test_spec_is_described_without_weights(folder, params):
    (folder / "model.safetensors").rename(folder / "aside")
    spec = describe_path(folder)
    assert (spec.name, spec.config) == ("tiny-llama", CONFIG)
    assert spec.load_tokenizer is not None
    assert (
        spec.load_tokenizer().vocab_size
        == tiny_tokenizer("byte pairs").get_vocab_size()
    )
    (folder / "aside").rename(folder / "model.safetensors")
    assert spec.load_params is not None
    jax.tree.map(np.testing.assert_array_equal, spec.load_params(), params)


def test_folder_without_tokenizer_has_none(folder):
    (folder / "tokenizer.json").unlink()
    assert hm.load_pretrained(folder).tokenizer is None


def test_tokenizer_of_another_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(FormatError, match="is of another model"):
        hm.load_pretrained(folder)


def test_family_that_is_not_known_is_named(folder):
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="model_type = 'mamba' is not supported"):
        hm.load_pretrained(folder)


def test_verbs_take_the_folder(folder, capsys):
    from haiku_mqa.cli import main

    words = ["generate", "--model", str(folder), "--max-new-tokens", "3"]
    assert main([*words, "the end"]) == 0
    assert main([*words, "--chat", "the end"]) == 0
    assert capsys.readouterr().out.strip()
