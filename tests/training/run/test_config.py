"""What a run is: fields that are refused, settings, recipes and files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from haiku_mqa import DecoderConfig, build
from haiku_mqa.rope_scaling import LinearScaling
from haiku_mqa.training import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    load_run_config,
    recipe_names,
)

SIZES = {"num_layers": 2, "num_heads": 4, "d_model": 64, "d_ff": 256}
CONFIG = RunConfig(model=SIZES)


# --- Fields ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_len": 0}, "seq_len must be a whole number >= 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number >= 1, got 1.5"),
        ({"eval_batch_size": 0}, "eval_batch_size must be a whole number >= 1, got 0"),
        ({"validation": 1}, "validation must be a number in (0, 1), got 1"),
        ({"validation": float("nan")}, "validation must be a number in (0, 1)"),
        ({"validation": "0.1"}, "validation must be a number in (0, 1), got '0.1'"),
        ({"tokenizer": "byte"}, "unknown tokenizer 'byte': did you mean 'bytes'?"),
        ({"tokenizer": ["bpe"]}, "unknown tokenizer"),
        ({"packing": "window"}, "unknown packing 'window': did you mean 'windows'?"),
        ({"loader": "memry"}, "unknown loader 'memry': did you mean 'memory'?"),
        ({"tokenizer": "bpe"}, "vocab_size must be a whole number >= 257, got None"),
        ({"tokenizer": "bpe", "vocab_size": 256}, ">= 257, got 256"),
        ({"vocab_size": 300}, "vocab_size must be None where tokenizer = 'characters'"),
        ({"source": ""}, "source must be the path of a text, got ''"),
        ({"source": 3}, "source must be the path of a text, got 3"),
    ],
)
def test_data_that_is_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"eval_every": 0}, "eval_every must be a whole number >= 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"log_every": True}, "log_every must be a whole number >= 1, got True"),
        ({"sample_every": 0}, "sample_every must be"),
        ({"sample_tokens": 0}, "sample_tokens must be"),
        ({"sample_prompt": ""}, "sample_prompt must be a text of one character at"),
        ({"max_skipped": -1}, "max_skipped must be a whole number >= 0, got -1"),
        ({"remat": 1}, "remat must be True or False, got 1"),
        ({"scan_layers": "yes"}, "scan_layers must be True or False, got 'yes'"),
        ({"compute_dtype": "bf16"}, "unknown compute_dtype 'bf16': did you mean 'bfl"),
        ({"average_decay": 1.0}, "average_decay must be a number in (0, 1), got 1.0"),
        ({"average_decay": False}, "average_decay must be a number in (0, 1)"),
        ({"data": {}}, "data must be of DataConfig, got {}"),
        ({"optimizer": None}, "optimizer must be of OptimizerConfig, got None"),
        ({"model": "big"}, "model must have DecoderConfig's fields, got 'big'"),
        ({"model": {}}, "model: DecoderConfig fields are missing: num_layers"),
        (
            {"model": {**SIZES, "num_kv_heads": 3}},
            "model: num_kv_heads must divide num_heads = 4, got 3; allowed: 1, 2, 4",
        ),
        (
            {"model": {**SIZES, "num_layer": 2}},
            "model: unknown DecoderConfig field 'num_layer': did you mean 'num_layers'",
        ),
        (
            {"model": {**SIZES, "vocab_size": 65}},
            "model.vocab_size is the tokenizer's and must be left out, got 65",
        ),
        (
            {"model": {**SIZES, "max_length": 64}},
            "data.seq_len must be at most model.max_length = 64, got 128",
        ),
        (
            {"optimizer": OptimizerConfig(accumulate=3)},
            "optimizer.accumulate must divide data.batch_size = 16, got 3",
        ),
    ],
)
def test_run_that_is_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig(**{"model": SIZES, **fields})


def test_model_is_that_of_its_fields_with_a_context_of_one_row():
    assert CONFIG.decoder_config(65) == DecoderConfig(
        vocab_size=65, max_length=128, **SIZES
    )
    wide = dataclasses.replace(CONFIG, model={**SIZES, "max_length": 512})
    assert wide.decoder_config(65).max_length == 512


def test_fields_of_the_model_that_were_left_out_are_written_down():
    whole = {**DecoderConfig(vocab_size=1, **SIZES).to_dict()}
    for name in ("vocab_size", "key_size", "value_size", "max_length"):
        del whole[name]
    assert CONFIG.to_dict()["model"] == whole
    assert RunConfig(model=whole) == CONFIG


def test_config_does_not_change_with_what_it_was_made_of():
    model = dict(SIZES)
    config = RunConfig(model=model)
    model["num_layers"] = 7
    config.to_dict()["model"]["num_layers"] = 7
    assert config == CONFIG


# --- JSON -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        RunConfig(
            model={
                **SIZES,
                "key_size": 8,
                "sliding_window": (4, None),
                "rope_scaling": LinearScaling(factor=2.0),
            },
            data=DataConfig(
                source="a.txt", tokenizer="bpe", vocab_size=300, eval_batch_size=2
            ),
            optimizer=OptimizerConfig(name="muon", schedule="wsd", decay_steps=7),
            compute_dtype="bfloat16",
            average_decay=0.99,
        ),
    ],
    ids=["usual", "unusual"],
)
def test_config_comes_back_from_json(config):
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert again.decoder_config(65) == config.decoder_config(65)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "RunConfig field is missing: model"),
        ({"model": SIZES, "sed": 1}, "unknown RunConfig field 'sed': did you mean"),
        ({"model": SIZES, "data": 3}, "data must have fields, got 3"),
        (
            {"model": SIZES, "data": {"seq": 3}},
            "data: unknown DataConfig field 'seq': did you mean 'seq_len'?",
        ),
        (
            {"model": SIZES, "optimizer": {"learning_rate": -1}},
            "optimizer: learning_rate must be a number above 0, got -1",
        ),
    ],
)
def test_data_that_is_no_config_is_refused(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig.from_dict(data)


# --- Settings -------------------------------------------------------------------------


def test_settings_set_fields_by_their_path():
    config = CONFIG.with_settings(
        [
            "optimizer.learning_rate=3e-4",
            "optimizer.betas=[0.9, 0.95]",
            "model.activation=gelu",
            "model.tie_embeddings=false",
            "data.source=texts/a=b.txt",
            "data.eval_batch_size=null",
            'sample_prompt="\\n\\n"',
            "seed=1",
            "seed=2",
        ]
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.model["activation"] == "gelu"
    assert config.model["tie_embeddings"] is False
    assert config.data.source == "texts/a=b.txt"
    assert config.data.eval_batch_size is None
    assert config.sample_prompt == "\n\n"
    assert config.seed == 2
    assert CONFIG.seed == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "setting 'seed' must be FIELD=VALUE, such as"),
        ("optimizer.lerning_rate=1", "did you mean 'optimizer.learning_rate'?"),
        ("model.vocab_size=3", "unknown setting 'model.vocab_size'"),
        ("num_layers=3", "did you mean 'model.num_layers'? See RunConfig"),
        ("modle.num_layers=3", "did you mean 'model.num_layers'?"),
        ("data={}", "unknown setting 'data'"),
        ("=3", "unknown setting ''"),
        ("seed=one", "seed must be a whole number from 0 to 4294967295, got 'one'"),
        ("model.num_heads=3", "model: key_size must be given where num_heads = 3"),
    ],
)
def test_setting_that_is_wrong_is_refused_and_the_nearest_named(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CONFIG.with_settings([setting])


def test_what_follows_from_other_fields_follows_when_they_are_set():
    config = CONFIG.with_settings(["model.num_heads=8", "data.seq_len=32"])
    assert config.decoder_config(65).key_size == 8
    assert config.decoder_config(65).max_length == 32
    config = CONFIG.with_settings(["optimizer.total_steps=500"])
    assert config.optimizer.decay_steps == 50


def test_a_decay_that_was_chosen_stays_when_the_length_is_set():
    config = CONFIG.with_settings(["optimizer.decay_steps=70"])
    config = config.with_settings(["optimizer.total_steps=500"])
    assert config.optimizer.decay_steps == 70


# --- Recipes and files ----------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_a_run_that_comes_back_from_json(name):
    config = load_run_config(name)
    assert RunConfig.from_dict(config.to_dict()) == config
    build(config.decoder_config(65))


def test_default_recipe_is_multi_query():
    config = load_run_config().decoder_config(65)
    assert config.num_kv_heads == 1 < config.num_heads
    assert config.position_embedding == "rotary"
    assert config.norm == "rms"
    assert config.gated


def test_nanogpt_recipe_has_the_size_that_nanogpt_reports():
    config = load_run_config("nanogpt-cpu")
    model = build(config.decoder_config(65))
    shapes = {path: leaf.shape for path, leaf in _leaves(model)}
    count = sum(_size(shape) for shape in shapes.values())
    positions = shapes["decoder_lm/position_embed/embeddings"]
    assert positions == (64, 128)
    # What it prints leaves the positions out: "number of parameters: 0.80M".
    assert count - _size(positions) == 4 * (4 * 128**2 + 2 * 128 * 512 + 256) + (
        128 + 65 * 128
    )
    assert not any(path.endswith(("/b", "/offset")) for path in shapes)


def _leaves(model):
    shapes = model.param_shapes
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]


def _size(shape):
    count = 1
    for length in shape:
        count *= length
    return count


def test_config_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"model": SIZES}))
    assert load_run_config(path) == CONFIG
    assert load_run_config(str(path)) == CONFIG


def test_config_is_read_from_the_folder_of_a_run(tmp_path):
    run = {"format": "haiku_mqa run 1", "config": CONFIG.to_dict(), "corpus": "0"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert load_run_config(tmp_path) == CONFIG
    assert load_run_config(tmp_path / "run.json") == CONFIG


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("defualt", "unknown recipe 'defualt': did you mean 'default'?"),
        ("mine.json", "run config 'mine.json': there is no such file"),
        ("runs/first", "run config 'runs/first': there is no such file"),
    ],
)
def test_recipe_that_is_not_there_is_refused(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_run_config(name)


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no run\.json in it"):
        load_run_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "it must be an object, got []"),
        ("\xff", "codec can't decode"),
        ("[" * 100_000, "recursion"),
        ('{"format": "haiku_mqa run 1"}', "it must be an object, got None"),
        ('{"model": {"num_layers": 0}}', "model: DecoderConfig fields are missing"),
    ],
    ids=["cut", "list", "bytes", "deep", "run", "field"],
)
def test_file_that_is_no_config_is_refused_by_name(tmp_path, text, message):
    path = Path(tmp_path, "mine.json")
    path.write_bytes(text.encode("latin-1"))
    whole = f"^{re.escape(str(path))} is no run config: .*{re.escape(message)}"
    with pytest.raises(ValueError, match=whole):
        load_run_config(path)
