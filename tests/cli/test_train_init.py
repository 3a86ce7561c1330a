"""``train --init``: a model that was trained before, trained on."""

from __future__ import annotations

import json

import pytest

from haiku_mqa import load_pretrained
from haiku_mqa.text import train_tokenizer
from haiku_mqa.training import load_run_config
from tests.folders import write_model_folder
from tests.tiny_gguf import write_tiny_gguf

TEXT = "To be, or not to be: that is the question.\n" * 40
SHORT = (
    "--steps=4",
    "--set",
    "data.batch_size=2",
    "data.eval_batch_size=64",
    "eval_every=4",
    "sample_every=4",
    "sample_tokens=4",
    "log_every=1",
)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def multi_head(tmp_path):
    tokenizer = train_tokenizer("characters", [TEXT])
    folder = tmp_path / "multi_head"
    return write_model_folder(folder, tokenizer=tokenizer, num_heads=2, num_kv_heads=2)


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {x["step"]: x["validation_loss"] for x in lines if "validation_loss" in x}


def test_converted_model_is_healed(run, multi_head, text, tmp_path):
    converted, healed = tmp_path / "converted", tmp_path / "healed"
    done = run("convert-heads", multi_head, converted, "--kv-heads", 1, "--text", text)
    assert done.code == 0, done.err
    done = run("train", "--init", converted, "--out", healed, "--data", text, *SHORT)
    assert done.code == 0, done.err
    assert "(multi-query)" in done.out
    told = losses(healed)
    assert list(told) == [0, 4]
    assert told[4] < told[0]
    source, made = load_pretrained(converted), load_pretrained(healed)
    assert made.model.config == source.model.config
    assert made.tokenizer == source.tokenizer


def test_run_has_the_models_sizes_and_a_recipe_for_the_rest(
    run, multi_head, text, tmp_path
):
    words = ("--init", multi_head, "--out", tmp_path / "run", "--data", text, *SHORT)
    assert run("train", *words).code == 0
    config, recipe = load_run_config(tmp_path / "run"), load_run_config("default")
    assert config.model["d_model"] == 16
    assert config.data.seq_len == 32  # as long as its context, and no longer
    assert config.optimizer.name == recipe.optimizer.name


def test_byte_pairs_are_the_models(run, text, tmp_path):
    tokenizer = train_tokenizer("bpe", [TEXT], 270)
    folder = write_model_folder(tmp_path / "bpe", tokenizer=tokenizer)
    words = ("--init", folder, "--out", tmp_path / "run", "--data", text, *SHORT)
    done = run("train", *words)
    assert done.code == 0, done.err
    config = load_run_config(tmp_path / "run")
    assert (config.data.tokenizer, config.data.vocab_size) == ("bpe", 270)
    assert load_pretrained(tmp_path / "run").tokenizer == tokenizer


def test_same_command_goes_on_with_the_run(run, multi_head, text, tmp_path):
    words = ("--init", multi_head, "--out", tmp_path / "run", "--data", text, *SHORT)
    assert run("train", *words).code == 0
    assert "all steps were done before" in run("train", *words).out
    resumed = run("train", "--resume", "--out", tmp_path / "run")
    assert "all steps were done before" in resumed.out


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["model.d_model=32"], "params do not fit the model: decoder_lm"),
        (["data.tokenizer=bytes"], "data.tokenizer must be 'characters'"),
        (["sample_prompt=§"], "sample_prompt must be of characters"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    run, multi_head, text, tmp_path, settings, told
):
    words = ("--init", multi_head, "--out", tmp_path / "run", "--data", text)
    done = run("train", *words, *SHORT, *settings)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert not (tmp_path / "run").exists()


def test_unknown_model_is_told_with_the_nearest_name(run, tmp_path):
    done = run("train", "--init", "shakespeare-mq", "--out", tmp_path / "run")
    assert done.code == 2
    assert "shakespeare-mqa" in done.err


def test_tokenizer_that_no_run_can_write_is_refused(run, tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    done = run("train", "--init", path, "--out", tmp_path / "run")
    assert done.code == 2
    assert f"{path} has a foreign one" in done.err
