"""Training beside torch: the protocol, the figures, and that the work is the same."""

from __future__ import annotations

import json
import sys

import pytest

from haiku_mqa.bench import training_speed
from haiku_mqa.bench.training_speed import run_training_speed
from haiku_mqa.config import DecoderConfig

SHAPE = DecoderConfig(
    vocab_size=31, num_layers=2, num_heads=4, d_model=16, d_ff=24, max_length=8
)


@pytest.fixture
def python(tmp_path):
    """``python(script)`` -> a program that is run in the place of Python."""

    def write(script):
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    return write


def _run(torch_python, **options):
    return run_training_speed(
        steps=2,
        repeats=3,
        torch_python=torch_python,
        shape=SHAPE,
        measure_matmul=lambda: 1e9,
        **options,
    )


def test_program_that_ends_at_once_is_left_out_and_said_why(python):
    found = _run(python("echo no torch here >&2; exit 1"))
    [ours] = found.data["programs"]
    assert len(ours["tokens_per_second_runs"]) == 3
    assert "torch, eager, is left out: no torch here" in found.notes


def test_python_that_is_not_there_is_left_out_and_said_why(tmp_path):
    found = _run(str(tmp_path / "nowhere"))
    assert any("left out" in note and "nowhere" in note for note in found.notes)


def test_compiling_is_left_out_without_a_compiler(python, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = _run(python("exit 1"))
    assert "torch.compile is left out: it needs a C++ compiler" in found.notes


def test_seconds_and_losses_are_what_the_peer_says(python, monkeypatch):
    monkeypatch.setattr(training_speed, "_has_compiler", lambda: False)
    answer = json.dumps({"seconds": 0.5, "losses": [3.5, 3.25]})
    script = f"""echo '{{"version": "9"}}'; while read n; do echo '{answer}'; done"""
    found = _run(python(script))
    ours, peer = found.data["programs"]
    assert peer["name"] == "torch 9, eager"
    assert peer["tokens_per_second"] == 2 * 8 * 8 / 0.5
    assert peer["loss_after_first_run"] == 3.25
    assert peer["fraction_of_matmul_rate"] == pytest.approx(
        256 * found.data["flops_per_token"] / 1e9
    )
    ratio = ours["tokens_per_second"] / peer["tokens_per_second"]
    assert found.rows[1][2] == f"{ratio:.2f}x"


@pytest.mark.parity
def test_torch_takes_the_same_steps():
    found = _run(sys.executable)
    losses = [program["loss_after_first_run"] for program in found.data["programs"]]
    assert len(losses) > 1
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-4)
