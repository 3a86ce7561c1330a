from __future__ import annotations

import errno
import os
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa.errors import FormatError
from haiku_mqa.training import OptimizerConfig, init_train_state
from haiku_mqa.training.run import checkpoints as room
from haiku_mqa.training.run.checkpoints import Checkpoints
from tests.training.run.runs import REPOSITORY

TREE = {"w": np.arange(6, dtype=np.float32), "n": np.int32(3) * np.ones((), np.int32)}
BIG = {"w": np.random.default_rng(0).random(2**20)}  # 8 MiB that do not compress
ABOUT = {"step": 8, "validation_loss": 1.5, "best": [8, 1.5]}


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def _same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


# --- What comes back ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_comes_back_bit_for_bit(checkpoints, name):
    draw = np.random.default_rng(0)
    params = {"linear": {"w": draw.normal(size=(3, 4)), "b": draw.normal(size=4)}}
    state = init_train_state(OptimizerConfig(name=name), params)
    checkpoints.save(8, state, ABOUT)
    shapes = jax.eval_shape(lambda: state)
    tree, about = checkpoints.restore(8, shapes)
    _same_bits(tree, state)
    assert about == ABOUT == checkpoints.about(8)


def test_odd_arrays_come_back_bit_for_bit(checkpoints):
    tree = {
        "bfloat16": jnp.array([1.5, -0.0], jnp.bfloat16),
        "not finite": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
        "none": None,
        "bool": np.array(True),
    }
    checkpoints.save(1, tree, {})
    _same_bits(checkpoints.restore(1, tree)[0], tree)


def test_steps_are_in_order_of_their_numbers(checkpoints):
    for step in (10, 9, 123_456_789):
        checkpoints.save(step, TREE, {})
    assert checkpoints.steps() == [9, 10, 123_456_789]
    assert checkpoints.path(9).name == "00000009"


def test_all_but_some_are_removed(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, TREE, {})
    checkpoints.keep(3, 1)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "00000001",
        "00000003",
    ]


def test_no_folder_has_no_steps(checkpoints):
    assert checkpoints.steps() == []
    checkpoints.remove_leftovers()
    assert not checkpoints.folder.exists()


# --- What is whole --------------------------------------------------------------------


def test_half_written_checkpoint_is_none_and_is_removed(checkpoints):
    checkpoints.save(4, TREE, {})
    part = checkpoints.folder / "00000008.saving-0a1b2c3d" / "arrays"
    part.mkdir(parents=True)
    assert checkpoints.steps() == [4]
    checkpoints.remove_leftovers()
    assert [p.name for p in checkpoints.folder.iterdir()] == ["00000004"]


def test_everything_is_on_the_disk_before_it_has_its_name(checkpoints, monkeypatch):
    happened, fsync, rename = [], os.fsync, os.rename

    def watched_fsync(descriptor):
        happened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def watched_rename(source, target):
        rename(source, target)
        happened.append((str(source), str(target)))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    path = checkpoints.save(8, TREE, ABOUT)
    named = [i for i, entry in enumerate(happened) if isinstance(entry, tuple)][-1]
    part, target = happened[named]
    assert target == str(path)
    written = {part}
    for parent, folders, names in os.walk(path):
        inside = parent.replace(str(path), part)
        written |= {f"{inside}/{name}" for name in folders + names}
    assert written <= set(happened[:named])
    assert str(checkpoints.folder) in happened[named:]


def test_interrupted_save_leaves_nothing(checkpoints, monkeypatch):
    checkpoints.save(4, TREE, {})

    def interrupted(path, tree):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "write_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(8, TREE, {})
    assert [p.name for p in checkpoints.folder.iterdir()] == ["00000004"]


FILES = ["about.json", "contents.json", "arrays/manifest.ocdbt", "arrays/d/*"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip a bit", "remove"])
def test_damaged_checkpoint_is_named(checkpoints, name, damage, capfd):
    path = checkpoints.save(8, TREE, ABOUT)
    (file,) = path.glob(name)
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:7])
    else:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(FormatError, match=f"checkpoint {path} is damaged") as caught:
        checkpoints.restore(8, TREE)
    assert file.name in str(caught.value) or file.name == "contents.json"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({**TREE, "w": np.zeros(5, np.float32)}, r"w is float32 \[6\] there, .* \[5\]"),
        ({**TREE, "w": np.zeros(6)}, r"w is float32 \[6\] there, and float64"),
        ({"n": TREE["n"]}, r"w is float32 \[6\] there, and missing here"),
        ({**TREE, "v": TREE["w"]}, r"v is missing there, and float32 \[6\] here"),
    ],
)
def test_checkpoint_of_another_model_is_refused(checkpoints, other, told, capfd):
    checkpoints.save(8, TREE, ABOUT)
    with pytest.raises(FormatError, match=f"of another model or optimizer: {told}"):
        checkpoints.restore(8, other)
    assert capfd.readouterr().err == ""


# --- A full disk ----------------------------------------------------------------------


def _assert_only_the_first_is_left(checkpoints):
    assert [p.name for p in checkpoints.folder.iterdir()] == ["00000004"]
    _same_bits(checkpoints.restore(4, TREE)[0], TREE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_told_of_and_the_last_checkpoint_is_whole(
    checkpoints, monkeypatch, number
):
    checkpoints.save(4, TREE, {})

    def full(path, tree):
        (path / "half").write_bytes(b"1234")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(room, "write_parts", full)
        with pytest.raises(OSError, match="step 8 could not be saved") as caught:
            checkpoints.save(8, TREE, {})
    assert caught.value.errno == number
    assert os.strerror(number) in str(caught.value)
    assert f"the last whole one is {checkpoints.path(4)}" in str(caught.value)
    _assert_only_the_first_is_left(checkpoints)


def _mount(path):
    """Makes a folder a file system of 2 MiB; returns whether this process may."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:  # there is no such command
        return False


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unforeseen"])
def test_disk_that_is_really_full_is_told_of(tmp_path, monkeypatch, seen):
    # Where nothing may be mounted, a write that fails stands for the full disk.
    is_small = _mount(tmp_path)
    try:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(4, TREE, {})
        if not seen:
            monkeypatch.setattr(room, "_require_room", lambda *_: None)
        if not is_small:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=full))
        with pytest.raises(
            OSError, match="No space left on device; the last"
        ) as caught:
            checkpoints.save(8, BIG, {})
        assert caught.value.errno == errno.ENOSPC
        _assert_only_the_first_is_left(checkpoints)
    finally:
        if is_small:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True)


LIMITED = """
import resource, sys
from tests.training.run.test_checkpoints import *
checkpoints = Checkpoints(room.Path(sys.argv[1]))
checkpoints.save(4, TREE, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    checkpoints.save(8, BIG, {})
except OSError as error:
    print(error.errno)
assert checkpoints.steps() == [4]
assert len(list(checkpoints.folder.iterdir())) == 1
"""


def test_files_that_may_not_grow_are_as_a_full_disk(tmp_path):
    program = [sys.executable, "-c", LIMITED, str(tmp_path / "checkpoints")]
    run = subprocess.run(program, capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(errno.EFBIG)]
    assert run.stderr == ""
