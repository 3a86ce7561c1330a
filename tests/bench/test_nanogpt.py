"""nanoGPT's recipe, and how a checkout of nanoGPT is run: here a stand-in for one."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest

from haiku_mqa.bench.nanogpt import run_nanogpt
from haiku_mqa.bench.nanogpt_peer import NanoGPT
from haiku_mqa.training import load_run_config

_TRAIN = """\
import pathlib, sys
seed = "torch.manual_seed(1337 + seed_offset)"
options = dict(word[2:].split("=") for word in sys.argv[2:])
out = pathlib.Path(options["out_dir"])
out.mkdir()
(out / "ckpt.pt").write_text(seed)
print("step 0: train loss 4.2, val loss 4.3")
print(f"step {options['max_iters']}: train loss 1.8123, val loss 1.9041")
"""
# Torch need not be installed: what would import it is answered here.
_PYTHON = """\
#!/bin/sh
case "$1 $2" in
  *__version__*) echo 9.9 ;;
  "-c "*) echo '{"loss": 1.875, "step": 20}' ;;
  *) exec %s "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "config").mkdir(parents=True)
    (folder / "train.py").write_text(_TRAIN)
    (folder / "model.py").write_text("")
    (folder / "config/train_shakespeare_char.py").write_text("")
    (folder / ".git").mkdir()
    return folder


@pytest.fixture
def python(tmp_path):
    file = tmp_path / "python"
    file.write_text(_PYTHON % sys.executable)
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def config():
    return load_run_config("nanogpt-cpu").with_settings(
        ["optimizer.total_steps=20", "optimizer.warmup_steps=1"]
    )


def test_copy_gets_the_data_that_nanogpt_would_prepare(
    checkout, python, config, tmp_path
):
    NanoGPT(checkout, tmp_path / "copy", python, config)
    data = tmp_path / "copy/data/shakespeare_char"
    train = np.fromfile(data / "train.bin", np.uint16)
    assert len(train) == 1_003_854
    assert len(np.fromfile(data / "val.bin", np.uint16)) == 111_540
    meta = pickle.loads((data / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == 65
    assert "".join(meta["itos"][i] for i in train[:14]) == "First Citizen:"
    assert not (tmp_path / "copy/.git").exists()
    assert not (checkout / "data").exists()


def test_nanogpt_gets_the_numbers_of_the_run(checkout, python, config, tmp_path):
    peer = NanoGPT(checkout, tmp_path / "copy", python, config)
    assert peer.words[2:] == [
        "config/train_shakespeare_char.py",
        "--device=cpu",
        "--compile=False",
        "--eval_iters=20",
        "--eval_interval=20",
        "--log_interval=1",
        "--block_size=64",
        "--batch_size=12",
        "--n_layer=4",
        "--n_head=4",
        "--n_embd=128",
        "--max_iters=20",
        "--lr_decay_iters=20",
        "--warmup_iters=1",
        "--dropout=0.0",
    ]


def test_each_run_of_nanogpt_has_a_seed_of_its_own(checkout, python, config, tmp_path):
    peer = NanoGPT(checkout, tmp_path / "copy", python, config)
    runs = [peer.run(seed) for seed in (0, 1)]
    assert [run["seed"] for run in runs] == [1337, 1338]
    saved = tmp_path / "copy/out-1/ckpt.pt"
    assert saved.read_text() == "torch.manual_seed(1338)"
    assert runs[0]["random_batches_loss"] == 1.9041
    assert runs[0]["validation_loss"] == 1.875
    assert (checkout / "train.py").read_text() == _TRAIN


def test_folder_that_is_no_checkout_is_refused(python, config, tmp_path):
    with pytest.raises(ValueError, match=r"checkout of nanoGPT.*has no train\.py"):
        NanoGPT(tmp_path, tmp_path / "copy", python, config)


def test_python_without_torch_is_refused(checkout, config, tmp_path):
    python = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--nanogpt-python names another"):
        NanoGPT(checkout, tmp_path / "copy", python, config)


def test_steps_whose_last_would_not_be_evaluated_are_refused(
    checkout, python, config, tmp_path
):
    config = config.with_settings(["optimizer.total_steps=300"])
    with pytest.raises(ValueError, match="--steps must be a multiple of 250"):
        NanoGPT(checkout, tmp_path / "copy", python, config)


def test_failure_of_nanogpt_is_told_with_its_last_line(
    checkout, python, config, tmp_path
):
    (checkout / "train.py").write_text("raise RuntimeError('no luck')")
    peer = NanoGPT(checkout, tmp_path / "copy", python, config)
    with pytest.raises(ValueError, match=r"train\.py failed: RuntimeError: no luck"):
        peer.run(0)


def test_both_run_in_turn_and_are_told_of_in_one_table(checkout, python):
    found = run_nanogpt(seeds=1, steps=20, nanogpt=checkout, nanogpt_python=python)
    ours, theirs = found.data["programs"]
    [run] = ours["runs"]
    assert 2 < run["validation_loss"] < 4.5
    assert run["random_batches_loss"] == pytest.approx(run["validation_loss"], abs=0.3)
    assert theirs["name"] == "nanoGPT, torch 9.9"
    assert len(found.markdown().splitlines()) == 4
    assert any("times as fast" in note for note in found.notes)
    text = json.dumps(found.to_dict())
    assert "--nanogpt FOLDER" in text
    assert str(checkout) not in text
