"""The model in the box: it is there, whole, and writes without a network."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import jax
import pytest

import haiku_mqa as hm
from haiku_mqa.training import (
    encode_corpus,
    make_loss,
    read_corpus,
    split,
    validation_batches,
)
from haiku_mqa.training.loss import mean_loss
from haiku_mqa.zoo import entries

CARD = Path(__file__).parents[2] / "docs" / "shakespeare-mqa.md"
SHOWN = 5e-4  # the card has three decimals
GOAL = 1.55  # nats per character

MOST_BYTES = 6 * 2**20  # of the weights: they are in every wheel


@pytest.fixture(scope="module")
def loaded():
    return hm.load_pretrained("shakespeare-mqa")


def test_model_is_multi_query_and_loads_by_its_name(loaded):
    assert loaded.model.config.num_kv_heads == 1
    assert loaded.model.config == hm.zoo.load("shakespeare-mqa").config
    assert "pretrained" in loaded.metadata.capabilities


def test_characters_are_those_of_the_corpus_in_the_package(loaded):
    assert loaded.tokenizer.characters == "".join(sorted(set(read_corpus().text)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_become_the_dtype_that_is_asked_for(dtype):
    loaded = hm.load_pretrained("shakespeare-mqa", dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {dtype}


def test_spec_gives_a_host_the_params_of_its_own_init():
    spec = hm.zoo.load("shakespeare-mqa")
    params = spec.load_params()
    drawn = jax.eval_shape(lambda: spec.init(jax.random.key(0), None))
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (params, drawn)]
    assert kinds[0] == kinds[1]


def test_weights_are_small_and_those_that_the_entry_names():
    data = (entries.SHAKESPEARE_MQA_FOLDER / "model.safetensors").read_bytes()
    assert len(data) < MOST_BYTES
    metadata = hm.zoo.load("shakespeare-mqa").metadata
    assert metadata.sha256 == hashlib.sha256(data).hexdigest()


def test_weights_that_are_others_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(entries.SHAKESPEARE_MQA_FOLDER, folder)
    monkeypatch.setattr(entries, "SHAKESPEARE_MQA_FOLDER", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(hm.FormatError, match=r"model\.safetensors is damaged"):
        hm.load_pretrained("shakespeare-mqa")


def test_model_continues_a_line(loaded):
    prompt = loaded.tokenizer.encode("ROMEO:")
    result = hm.generate(loaded.model, loaded.params, [prompt], max_new_tokens=5)
    assert len(loaded.tokenizer.decode(result.tokens[0])) == 5


def test_validation_loss_is_the_one_on_the_card(loaded):
    (shown,) = re.findall(
        r"^\| validation loss \| ([\d.]+) nats", CARD.read_text(), re.M
    )
    _, held_out = split(read_corpus())
    tokens = encode_corpus(held_out, loaded.tokenizer)
    loss = jax.jit(make_loss(loaded.model))
    batches = validation_batches(tokens, seq_len=256, batch_size=16)
    found = mean_loss(loss(loaded.params, batch, None) for batch in batches)
    assert found == pytest.approx(float(shown), abs=SHOWN)
    assert found <= GOAL
