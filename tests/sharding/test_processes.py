"""Real processes, joined on loopback, train as one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.readme_blocks import REPOSITORY

TRAIN = "from haiku_mqa.cli import main; raise SystemExit(main())"
SETTINGS = (
    *("model.num_layers=1", "model.num_heads=2", "model.d_model=16", "model.d_ff=32"),
    *("data.seq_len=16", "data.batch_size=8", "eval_every=10", "checkpoint_every=5"),
    *("log_every=1", "sample_every=1000"),
)
CLOSE = 1e-4  # of losses after some steps, which rounding takes apart
SECONDS = 240  # that a run takes at most, beside other tests


def start(out, compiled, *options, steps=20):
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "JAX_NUM_CPU_DEVICES": "1",
        "HAIKU_MQA_CACHE": str(compiled),
        "XLA_FLAGS": "",
    }
    words = ["train", "--out", str(out), "--steps", str(steps), "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *words, "--set", *SETTINGS, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def several(out, compiled, count, mesh, **options):
    port = free_port()
    return [
        start(
            out,
            compiled,
            *("--mesh", mesh, "--coordinator", f"127.0.0.1:{port}"),
            *("--num-processes", str(count), "--process-id", str(index)),
            **options,
        )
        for index in range(count)
    ]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ended(processes):
    """Returns exit codes and outputs of processes, once all have ended."""
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    told = [
        "".join(line for line in output.splitlines(True) if "[Gloo]" not in line)
        for output in outputs
    ]
    return [process.returncode for process in processes], told


def losses(out):
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    found = {}
    for line in map(json.loads, lines):
        if "loss" in line:
            found[line["step"]] = line["loss"]
    return found


def wait_for_step(out, step):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if (Path(out) / f"checkpoints/{step:08d}").exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step}")


@pytest.fixture(scope="module")
def compiled(compiled_folder):
    return compiled_folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, compiled):
    out = tmp_path_factory.mktemp("alone") / "run"
    codes, outputs = ended([start(out, compiled)])
    assert codes == [0], outputs
    return losses(out)


@pytest.mark.parametrize(
    ("count", "mesh"), [(2, "data=2"), (2, "tensor=2"), (4, "fsdp=2,tensor=2")]
)
def test_several_processes_train_as_one(alone, tmp_path, compiled, count, mesh):
    out = tmp_path / "run"
    codes, outputs = ended(several(out, compiled, count, mesh))
    assert codes == [0] * count, outputs
    told = losses(out)
    assert told.keys() == alone.keys()
    np.testing.assert_allclose([*told.values()], [*alone.values()], rtol=CLOSE)
    assert all(output == "" for output in outputs[1:])  # the first speaks for all


def test_when_one_is_killed_the_others_end_and_all_go_on(alone, tmp_path, compiled):
    out = tmp_path / "run"
    processes = several(out, compiled, 2, "data=2", steps=2000)
    wait_for_step(out, 10)
    processes[1].kill()
    start_of_end = time.monotonic()
    output = processes[0].communicate(timeout=SECONDS)[0]
    assert time.monotonic() - start_of_end < 60
    assert processes[0].returncode not in (0, None)
    assert "lost another one" in output
    assert "Traceback" not in output
    processes[1].communicate()
    before = losses(out)
    # The same run, of another length as asked: go on as it began.
    saved = max(int(path.name) for path in (out / "checkpoints").iterdir())
    again = several(out, compiled, 2, "data=2", steps=2000)
    wait_for_step(out, saved + 10)
    for process in again:
        process.kill()
        process.communicate()
    after = losses(out)
    for step in range(saved + 1, min(max(before), saved + 5) + 1):
        assert after[step] == pytest.approx(before[step], rel=CLOSE)


def test_process_that_does_not_come_is_one_clear_line(tmp_path, compiled):
    words = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
    process = start(tmp_path / "run", compiled, *words, "--mesh", "data=2")
    code, output = ended([process])
    assert code == [2]
    assert "several processes need --coordinator, --num-processes" in output[0]


def test_run_that_cannot_begin_ends_in_every_process(tmp_path, compiled):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}")
    codes, outputs = ended(several(out, compiled, 2, "data=2"))
    assert 0 not in codes
    assert "the first process could not begin" in outputs[1]


def test_checkpoints_of_several_go_on_in_one(alone, tmp_path, compiled):
    out = tmp_path / "run"
    processes = several(out, compiled, 2, "fsdp=2")
    wait_for_step(out, 5)
    for process in processes:
        process.kill()
        process.communicate()
    codes, outputs = ended([start(out, compiled)])
    assert codes == [0], outputs
    told = losses(out)
    np.testing.assert_allclose(
        [told[step] for step in alone], [*alone.values()], rtol=CLOSE
    )


GENERATE = """
import sys
import jax
import haiku_mqa as hm
from haiku_mqa.sharding import join, shard

coordinator, count, index, mesh = sys.argv[1:]
if int(count) > 1:
    join(coordinator, int(count), int(index))
model = hm.build(hm.DecoderConfig(
    vocab_size=64, num_layers=2, num_heads=4, num_kv_heads=1, d_model=16, d_ff=32))
if mesh:
    model = shard(model, mesh)
params = model.init(jax.random.key(0))
result = hm.generate(model, params, [[1, 2, 3], [4], [5, 6], [7]], max_new_tokens=8)
print(result.tokens)
"""


@pytest.mark.parametrize(
    ("count", "mesh"), [(2, "data=2"), (2, "tensor=2"), (4, "data=2,tensor=2")]
)
def test_several_processes_generate_as_one(count, mesh):
    one = ended([generating("", 1, 0, "")])
    coordinator = f"127.0.0.1:{free_port()}"
    codes, outputs = ended(
        [generating(coordinator, count, index, mesh) for index in range(count)]
    )
    assert codes == [0] * count, outputs
    assert outputs == one[1] * count


def generating(*words):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    environment["JAX_NUM_CPU_DEVICES"] = "1"
    return subprocess.Popen(
        [sys.executable, "-c", GENERATE, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
