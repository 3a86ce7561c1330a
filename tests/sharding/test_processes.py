"""Real processes, joined on loopback, train as one process does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.readme_blocks import REPOSITORY

SETTINGS = (
    *("model.num_layers=1", "model.num_heads=2", "model.d_model=16", "model.d_ff=32"),
    *("data.seq_len=16", "data.batch_size=8", "data.eval_batch_size=8"),
    *("eval_every=10", "checkpoint_every=5", "log_every=1", "sample_every=1000"),
)
CLOSE = 1e-4  # of losses after some steps, which rounding takes apart
SECONDS = 480  # that a run takes at most, beside other tests


def started(*command, **watched):
    """Returns a process with one device, watched as ``child`` tells."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**environment, "JAX_NUM_CPU_DEVICES": "1", **watched},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def cli(compiled, *words, **watched):
    folder = str(compiled)
    command = ("-m", "tests.sharding.child", *words)
    return started(*command, HAIKU_MQA_CACHE=folder, **watched)


def start(out, compiled, *options, steps=20, **watched):
    words = ("train", "--out", out, "--steps", steps, "--quiet", "--set", *SETTINGS)
    return cli(compiled, *words, *options, **watched)


def several(out, compiled, mesh, *watched, **options):
    """Returns as many processes of one run as there are ways to watch them."""
    return [
        start(out, compiled, *words, **way, **options)
        for words, way in zip(joined(mesh, len(watched)), watched, strict=True)
    ]


def joined(mesh, count):
    """Yields the words that join each of several processes."""
    coordinator = f"127.0.0.1:{free_port()}"
    for index in range(count):
        yield (
            *("--mesh", mesh, "--coordinator", coordinator),
            *("--num-processes", count, "--process-id", index),
        )


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


def killed(processes):
    for process in processes:
        process.kill()
        process.communicate()


def losses(out):
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    found = {}
    for line in map(json.loads, lines):
        if "loss" in line:
            found[line["step"]] = line["loss"]
    return found


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def wait_for(out, pattern):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if list((Path(out) / "checkpoints").glob(pattern)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint {pattern}")


@pytest.fixture(scope="module")
def compiled(compiled_folder):
    return compiled_folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, compiled):
    out = tmp_path_factory.mktemp("alone") / "run"
    codes, outputs = ended([start(out, compiled)])
    assert codes == [0], outputs
    return losses(out)


# --- A run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [
        ("data=2", [(0, 4), (4, 8)]),
        ("tensor=2", [(0, 8), (0, 8)]),
        ("fsdp=2,tensor=2", [(0, 4), (0, 4), (4, 8), (4, 8)]),
    ],
)
def test_several_processes_train_as_one(alone, tmp_path, compiled, mesh, rows):
    out, notes = tmp_path / "run", [tmp_path / str(i) for i in range(len(rows))]
    watched = [{"NOTES": str(note)} for note in notes]
    codes, outputs = ended(several(out, compiled, mesh, *watched))
    assert codes == [0] * len(rows), outputs
    told = losses(out)
    assert told.keys() == alone.keys()
    np.testing.assert_allclose([*told.values()], [*alone.values()], rtol=CLOSE)
    assert all(output == "" for output in outputs[1:])  # the first speaks for all
    for note, own in zip(notes, rows, strict=True):  # each makes its own rows alone
        made = {*note.read_text().splitlines()}
        assert made == {f"batch {own}", f"validation_batches {own}"}


def test_when_one_is_killed_the_others_end_and_all_go_on(alone, tmp_path, compiled):
    out = tmp_path / "run"
    processes = several(out, compiled, "data=2", {}, {}, steps=2000)
    wait_for(out, "00000010")
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
    saved = max(int(name) for name in checkpoints(out))
    again = several(out, compiled, "data=2", {}, {}, steps=2000)
    wait_for(out, f"{saved + 10:08d}")
    killed(again)
    after = losses(out)
    for step in range(saved + 1, min(max(before), saved + 5) + 1):
        assert after[step] == pytest.approx(before[step], rel=CLOSE)


def test_process_that_is_not_told_of_the_others_is_one_clear_line(tmp_path, compiled):
    words = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
    process = start(tmp_path / "run", compiled, *words, "--mesh", "data=2")
    code, output = ended([process])
    assert code == [2]
    assert "several processes need --coordinator, --num-processes" in output[0]


def test_run_that_cannot_begin_ends_in_every_process(tmp_path, compiled):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}")
    codes, outputs = ended(several(out, compiled, "data=2", {}, {}))
    assert 0 not in codes
    assert "the first process could not begin" in outputs[1]


# --- Its checkpoints ------------------------------------------------------------------


@pytest.fixture(scope="module")
def halted(tmp_path_factory, compiled):
    """A run whose second process finds the disk full, and how all ended."""
    out = tmp_path_factory.mktemp("halted") / "run"
    return out, *ended(several(out, compiled, "fsdp=2", {}, {"FULL": "00000010"}))


def test_part_that_cannot_be_saved_ends_all_and_leaves_what_was_saved(halted):
    out, codes, (first, second) = halted
    assert codes == [1, 1]
    assert "another process failed; it says why" in first
    assert "step 10 could not be saved" in second
    assert "No space left on device; the last whole one is" in second
    assert "Traceback" not in first + second
    assert checkpoints(out) == ["00000005"]


def test_kill_in_a_save_leaves_a_run_that_goes_on_anywhere(
    alone, halted, tmp_path, compiled
):
    out = shutil.copytree(halted[0], tmp_path / "run")
    # What two processes wrote by fsdp, two others read by tensor.
    processes = several(out, compiled, "tensor=2", {"SLOW": "2"}, {"SLOW": "2"})
    wait_for(out, "00000010.saving-*/arrays/ocdbt.process_1")
    processes[0].kill()
    codes, _ = ended(processes)
    assert 0 not in codes
    assert checkpoints(out)[0] == "00000005"
    assert "00000010.saving-" in checkpoints(out)[1]
    codes, outputs = ended([start(out, compiled)])  # and then one alone
    assert codes == [0], outputs
    told = losses(out)
    np.testing.assert_allclose(
        [told[step] for step in alone], [*alone.values()], rtol=CLOSE
    )


# --- A process that does not come -----------------------------------------------------


def test_process_waits_for_others_so_long_and_says_so_in_one_line(tmp_path, compiled):
    # The first of two, alone, and a second whose first is not there.
    apart = [list(joined("data=2", 2))[index] for index in range(2)]
    begin = time.monotonic()
    codes, outputs = ended(
        [
            start(tmp_path / "run", compiled, *words, "--join-timeout", 3)
            for words in apart
        ]
    )
    assert time.monotonic() - begin < 60
    assert codes == [1, 1]
    for index, output in enumerate(outputs):
        (line,) = output.splitlines()
        assert f"process {index} of 2 did not meet all others at 127.0.0.1" in line
        assert "within 3 s" in line


# --- Texts ----------------------------------------------------------------------------


def test_command_line_generates_in_several_processes_as_in_one(compiled):
    words = ("generate", "--max-new-tokens", 12, "--temperature", 0, "ROMEO:")
    (code,), (one,) = ended([cli(compiled, *words)])
    assert code == 0, one
    codes, (first, second) = ended(
        [cli(compiled, *words, *others) for others in joined("tensor=2", 2)]
    )
    assert codes == [0, 0], first + second
    assert first.splitlines()[:-1] == one.splitlines()[:-1]  # the last has seconds
    assert second == ""  # the first speaks for all


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


@pytest.fixture(scope="module")
def generated():
    (code,), (output,) = ended([generating("", 1, 0, "")])
    assert code == 0, output
    return output


@pytest.mark.parametrize(("count", "mesh"), [(2, "data=2"), (4, "data=2,tensor=2")])
def test_several_processes_generate_as_one(generated, count, mesh):
    coordinator = f"127.0.0.1:{free_port()}"
    codes, outputs = ended(
        [generating(coordinator, count, index, mesh) for index in range(count)]
    )
    assert codes == [0] * count, outputs
    assert outputs == [generated] * count


def generating(*words):
    return started("-c", GENERATE, *words)
