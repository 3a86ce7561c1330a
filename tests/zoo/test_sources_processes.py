"""Fetching, where processes are interrupted, killed, or several at once."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from haiku_mqa._files import cache_folder
from haiku_mqa.zoo import _workspace
from haiku_mqa.zoo.sources import cached_path, fetch

SLOW_PIP = """
import os, pathlib, signal, sys, time
{before}
(pathlib.Path(os.environ["TMPDIR"]) / "half.whl").write_bytes(bytes(1000))
pathlib.Path({pid_file!r}).write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def start(wheels, source, tmp_path):
    """``start(setup="", python=...)`` begins a fetch in a process of its own."""
    started = []

    def begin(setup="", python=sys.executable):
        code = (
            "import signal, sys, time\n"
            "from haiku_mqa.zoo import _workspace, sources\n"
            # Whoever runs the tests in the background has interrupts ignored.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"{setup}\nsys.executable = {str(python)!r}\n"
            f"print(sources.fetch(sources.{source!r}, progress=False))\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def slow_pip(tmp_path):
    """``slow_pip(before="")`` -> a Python whose pip hangs, the file with its pid."""
    pid_file = tmp_path / "pid"

    def make(before=""):
        script = tmp_path / "python"
        code = SLOW_PIP.format(before=before, pid_file=str(pid_file))
        script.write_text(f"#!{sys.executable}\n{code}")
        script.chmod(0o755)
        return script, pid_file

    yield make
    if pid_file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


@pytest.fixture
def gated_pip(tmp_path):
    """A Python whose pip is real, counts its runs, and waits for a file ``go``."""
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\necho run >> {tmp_path}/runs\n"
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n"
        f'exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return script


def _wait_for(condition):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 20 seconds in vain")


def _has_text(path):
    return lambda: path.exists() and path.read_text() != ""


def _runs(tmp_path):
    runs = tmp_path / "runs"
    return runs.read_text().count("run") if runs.exists() else 0


def _left_in(folder):
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("stubborn", [False, True])
def test_interrupt_ends_fetch_promptly_and_leaves_nothing(start, slow_pip, stubborn):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""
    python, pid_file = slow_pip(ignore)
    child = start(python=python)
    _wait_for(_has_text(pid_file))
    assert _left_in(cache_folder()) != set()
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert time.monotonic() - begin < 6
    assert child.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert _left_in(cache_folder()) == set()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_fetch_recovers_from_a_run_killed_while_downloading(
    start, slow_pip, source, content
):
    python, pid_file = slow_pip()
    child = start(python=python)
    _wait_for(_has_text(pid_file))
    child.kill()
    child.wait()
    assert not cached_path(source).exists()
    assert _left_in(cache_folder()) != set()
    assert fetch(source, progress=False).read_bytes() == content
    assert _left_in(cache_folder()) == {cached_path(source).name}


def test_fetch_recovers_from_a_run_killed_before_the_file_is_in_place(
    start, source, content
):
    child = start(
        "def hang(part, target):\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "_workspace.put_in_place = hang"
    )
    assert child.stdout.readline() == "written\n"
    child.kill()
    child.wait()
    assert not cached_path(source).exists()
    assert fetch(source, progress=False).read_bytes() == content
    assert _left_in(cache_folder()) == {cached_path(source).name}


def test_two_fetches_at_once_download_once(start, gated_pip, source, content, tmp_path):
    first = start(python=gated_pip)
    _wait_for(lambda: _runs(tmp_path) == 1)
    second = start(python=gated_pip)
    assert "waiting for another process that is fetching" in second.stderr.readline()
    (tmp_path / "go").touch()
    for child in (first, second):
        out, err = child.communicate(timeout=20)
        assert (out, err) == (f"{cached_path(source)}\n", "")
    assert _runs(tmp_path) == 1
    assert cached_path(source).read_bytes() == content
    assert _left_in(cache_folder()) == {cached_path(source).name}


def test_two_fetches_at_once_are_harmless_without_locks(
    start, gated_pip, source, content, tmp_path
):
    setup = "_workspace._try_lock = lambda file: None"
    children = [start(setup, gated_pip) for _ in range(2)]
    _wait_for(lambda: _runs(tmp_path) == 2)
    (tmp_path / "go").touch()
    for child in children:
        out, err = child.communicate(timeout=20)
        assert (out, err) == (f"{cached_path(source)}\n", "")
    assert cached_path(source).read_bytes() == content
    assert _left_in(cache_folder()) == {cached_path(source).name}


def test_put_in_place_renames_so_that_no_reader_sees_half_a_file(tmp_path):
    part, target = tmp_path / "part", tmp_path / "target"
    part.write_bytes(b"new")
    target.write_bytes(b"old")
    inode = part.stat().st_ino
    with open(target, "rb") as reader:
        _workspace.put_in_place(part, target)
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"
    assert target.stat().st_ino == inode
    assert not part.exists()


def test_clear_stale_spares_a_folder_that_is_in_use(tmp_path):
    with _workspace.temporary_folder(tmp_path) as temp:
        _workspace.clear_stale(tmp_path)
        assert temp.is_dir()
    assert not temp.exists()


def test_clear_stale_removes_a_folder_whose_owner_is_gone(tmp_path):
    (tmp_path / ".fetch-a").mkdir()
    (tmp_path / ".fetch-a/owner").touch()
    (tmp_path / "kept").mkdir()
    _workspace.clear_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(("minutes", "left"), [(59, True), (61, False)])
def test_clear_stale_goes_by_an_hour_where_locks_do_not_tell(tmp_path, minutes, left):
    folder = tmp_path / ".fetch-a"
    folder.mkdir()
    (folder / "part").touch()
    then = time.time() - 60 * minutes
    for path in (folder / "part", folder):
        os.utime(path, (then, then))
    _workspace.clear_stale(tmp_path)
    assert folder.exists() == left


def test_files_under_passes_over_what_disappears_meanwhile(tmp_path):
    (tmp_path / "kept").write_bytes(bytes(7))

    def churn():
        while not done.is_set():
            (tmp_path / "gone").mkdir()
            (tmp_path / "gone/file").touch()
            shutil.rmtree(tmp_path / "gone")

    done = threading.Event()
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(2000):
            sizes = [status.st_size for status in _workspace.files_under(tmp_path)]
            assert 7 in sizes
    finally:
        done.set()
        thread.join()
