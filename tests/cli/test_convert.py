"""Converted models: folders that are whole, and the same model with the same tokens."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa.text import train_tokenizer
from tests.folders import CORPUS, write_model_folder
from tests.models import drawn_params
from tests.pretrained.hf_tokenizers import write_tokenizer
from tests.tiny_gguf import write_tiny_gguf

MESSAGES = [{"role": "user", "content": "the <|turn|> end"}]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "converted"


@pytest.fixture
def gguf(tmp_path):
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def check_same(source, out):
    one, other = hm.load_pretrained(source), hm.load_pretrained(out)
    assert one.model.config == other.model.config
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    return one.tokenizer, other.tokenizer


def test_gguf_file_becomes_a_folder_with_its_tokenizer(run, gguf, out):
    done = run("convert", gguf, out)
    assert (done.code, done.out) == (0, f"wrote {out}, of the family llama\n")
    assert f"writing {out}" in done.err
    ours, theirs = check_same(gguf, out)
    for text in ("the other", "naïve <|turn|> 12", " é\n"):
        for control in (True, False):
            ids = ours.encode(text, control_tokens=control)
            assert theirs.encode(text, control_tokens=control) == ids
        assert theirs.decode(ids) == text
    assert theirs.encode_chat(MESSAGES) == ours.encode_chat(MESSAGES)
    assert (theirs.bos_token, theirs.end_tokens) == (ours.bos_token, ours.end_tokens)


def test_folder_keeps_its_family_and_tokenizer(run, tmp_path, out):
    config = hm.DecoderConfig(
        vocab_size=264, num_layers=1, num_heads=2, d_model=16, d_ff=16, max_length=64
    )
    source = tmp_path / "source"
    params = drawn_params(hm.build(config))
    hm.save_pretrained(source, config, params, family="mistral", end_tokens=[7])
    write_tokenizer(source)
    assert run("convert", source, out).code == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "mistral"
    ours, theirs = check_same(source, out)
    assert ours.encode("the") == theirs.encode("the")
    assert ours.encode_chat(MESSAGES) == theirs.encode_chat(MESSAGES)
    assert ours.end_tokens == theirs.end_tokens


def test_folder_of_a_run_goes_without_what_only_training_asks_for(run, tmp_path, out):
    source = write_model_folder(tmp_path / "run", residual_dropout=0.1)
    done = run("convert", source, out, "--dtype", "bfloat16")
    assert done.code == 0
    assert "left out, since only training asks for it: residual_dropout = 0.1" in (
        done.err
    )
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert hm.pretrained.stored_dtypes(out) == ("bfloat16",)


KINDS = ("characters", "bytes", "bpe")


def of_a_run(kind, run, tmp_path, out):
    """Converts a run; returns its tokenizer, and a text with what only some can say."""
    tokenizer = train_tokenizer(kind, [CORPUS], 270 if kind == "bpe" else None)
    source = write_model_folder(tmp_path / "run", tokenizer=tokenizer)
    assert run("convert", source, out).code == 0
    spelled = "" if kind == "characters" else "<|endoftext|> naïve 🙂 ."
    return tokenizer, CORPUS + spelled


@pytest.mark.parametrize("kind", KINDS)
def test_folder_of_a_run_keeps_its_tokenizer(kind, run, tmp_path, out):
    ours, text = of_a_run(kind, run, tmp_path, out)
    theirs = hm.load_pretrained(out).tokenizer
    ids = ours.encode(text)
    assert theirs.encode(text) == ids
    assert theirs.decode([*ids, *ours.end_tokens]) == text
    assert (theirs.end_tokens, theirs.vocab_size) == (ours.end_tokens, ours.vocab_size)


def test_character_that_a_run_did_not_know_is_named(run, tmp_path, out):
    of_a_run("characters", run, tmp_path, out)
    done = run("generate", "--model", out, "to be!")
    assert done.code == 2
    assert "text has '!', for which the vocabulary has no token" in done.error


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_tokenizer_of_a_run(kind, run, tmp_path, out):
    from transformers import AutoTokenizer

    ours, text = of_a_run(kind, run, tmp_path, out)
    theirs = AutoTokenizer.from_pretrained(out)
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert theirs.decode([*ids, *ours.end_tokens], skip_special_tokens=True) == text
    assert theirs.eos_token_id == next(iter(ours.end_tokens), None)


class Words:
    """A plugin's own tokenizer."""

    def encode(self, text):
        return [len(word) for word in text.split()]

    def decode(self, ids):
        return " ".join("-" * i for i in ids)


def test_tokenizer_that_others_cannot_read_is_told_of(run, gguf, out, monkeypatch):
    loaded = dataclasses.replace(hm.load_pretrained(gguf), tokenizer=Words())
    monkeypatch.setattr("haiku_mqa.cli.convert.load_model", lambda *_, **__: loaded)
    done = run("convert", gguf, out)
    assert done.code == 0
    assert "no tokenizer was written: a Words has no form that others read" in done.err
    assert not (out / "tokenizer.json").exists()


def test_family_that_cannot_hold_it_is_refused_by_field(run, gguf, out):
    done = run("convert", gguf, out, "--family", "gpt2")
    assert done.code == 2
    assert "config is not one that family 'gpt2' can hold" in done.error
    assert not out.exists()


def test_unknown_family_is_told_before_anything_is_read(run, gguf, out):
    done = run("convert", gguf, out, "--family", "lama")
    assert done.code == 2
    assert "model_type = 'lama' is not supported; allowed: cohere" in done.error
    assert "loading" not in done.err


def test_file_of_gguf_becomes_a_folder_of_its_architecture(run, gguf, out):
    done = run("convert", gguf, out)
    assert "of the family llama" in done.out
    assert hm.pretrained.family_of_folder(out) == "llama"


def test_folder_that_is_not_empty_is_left_alone(run, gguf, out):
    out.mkdir(parents=True)
    (out / "mine").touch()
    done = run("convert", gguf, out)
    assert done.code == 2
    assert "OUT must be a new or an empty folder" in done.error
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_card_tells_family_and_dtype_without_weights(run, gguf, out):
    card = json.loads(run("zoo", "info", gguf, "--json").out)
    assert (card["family"], card["dtype"]) == ("llama", "F32")
    assert run("convert", gguf, out, "--dtype", "bfloat16").code == 0
    card = json.loads(run("zoo", "info", out, "--json").out)
    assert (card["family"], card["dtype"]) == ("llama", "bfloat16")
    printed = run("zoo", "info", out).out
    assert "family        llama\n" in printed
    assert "cache per token" in printed
