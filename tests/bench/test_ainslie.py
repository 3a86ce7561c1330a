"""Conversion and training on, at a scale that takes no time."""

from __future__ import annotations

import json

import jax
import pytest

from haiku_mqa import DecoderConfig, build
from haiku_mqa.bench.ainslie import METHODS, conversions, run_ainslie
from haiku_mqa.bench.batch_decode import BatchDecode, decode_in_turns
from haiku_mqa.bench.plot_ainslie import plot_ainslie
from tests.bench.tiny import CORPUS, DECODING, SCALE, decode_with


@pytest.fixture(scope="module")
def found(compiled_once):
    return run_ainslie(
        steps=40, scale=SCALE, corpus=CORPUS, decode_with=decode_with, **DECODING
    )


def test_model_is_converted_by_every_method(found):
    made = [(m["num_kv_heads"], m["method"]) for m in found.data["models"]]
    assert made == [(2, None), *((1, method) for method in METHODS)]


def test_model_that_is_not_converted_begins_where_training_ended(found):
    [note, *_] = found.notes
    whole = found.data["models"][0]["validation_losses"]
    assert f"came to {whole[0]:.3f} nats" in note


def test_converted_models_are_healed_by_training_on(found):
    assert found.data["uptraining_steps"] == [0, 1, 2, 4]
    for model in found.data["models"][1:]:
        losses = model["validation_losses"]
        assert len(losses) == 4
        assert losses[-1] < losses[0]


def test_conversion_draws_random_heads_by_the_seed():
    config = DecoderConfig(
        vocab_size=9, num_layers=1, num_heads=2, num_kv_heads=2, d_model=8, d_ff=8
    )
    model = build(config)
    params = model.init(jax.random.key(0))
    first, again, other = (
        conversions(model, params, seed)[-1].params[
            "decoder_lm/decoder/layer_0/attention/key"
        ]["w"]
        for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert not (first == other).any()


def test_findings_are_plain_data_and_a_table(found):
    data = json.loads(json.dumps(found.to_dict()))
    assert data["uptraining_optimizer"]["schedule"] == "constant"
    assert [d["num_kv_heads"] for d in data["decoding"]] == [2, 1]
    lines = found.markdown().splitlines()
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {len(found.columns) + 1}


def test_picture_is_drawn(found, tmp_path):
    plot_ainslie(found.data, tmp_path / "ainslie.png")
    assert (tmp_path / "ainslie.png").read_bytes().startswith(b"\x89PNG")


def test_models_take_turns_in_decoding():
    log = []

    class Scripted(BatchDecode):
        def __init__(self, name):
            self.name = name

        def run(self):
            log.append(self.name)
            return len(log)

    seconds, bandwidth = decode_in_turns(
        [Scripted("a"), Scripted("b")], 2, measure_bandwidth=lambda: 7.0
    )
    assert log == ["a", "b", "a", "b"]
    assert (seconds, bandwidth) == ([[1, 3], [2, 4]], 7.0)
