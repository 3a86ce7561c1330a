"""The dispatcher: help, version, exit codes, and how little they need."""

import importlib.metadata
import re

import pytest

from haiku_mqa.cli.main import build_parser

VERBS = (
    "attention",
    "bench",
    "chat",
    "convert",
    "convert-heads",
    "demo",
    "eval",
    "generate",
    "serve",
    "train",
    "zoo",
)
LIGHT = (
    ["--help"],
    ["--version"],
    ["generate", "--help"],
    ["serve", "--help"],
    ["chat", "--help"],
    ["chat", "--model", "no-such-model"],
    ["attention", "--help"],
    ["eval", "--help"],
    ["train", "--help"],
    ["convert", "--help"],
    ["convert", "no-such-model", "out"],
    ["convert-heads", "--help"],
    ["bench", "decode", "--help"],
    ["bench", "startup", "--help"],
    ["zoo", "check", "--help"],
    ["zoo", "list"],
    ["zoo", "info", "no-such-model"],
    ["generate", "--model", "no-such-model", "text"],
    ["generate", ""],
    ["serve", "--port", "0", "--model", "no-such-model"],
    ["eval", "--model", "no-such-model"],
    ["convert-heads", "no-such-model", "out", "--kv-heads", "1"],
    ["train"],
    ["train", "--out", "no-such-run", "--resume"],
    ["train", "--out", "no-such-run", "--set", "seed"],
)


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_command_needs_no_arrays(run_python, words):
    done = run_python(
        "import sys\n"
        "from haiku_mqa.cli import main\n"
        f"main({words!r})\n"
        "heavy = {'jax', 'haiku', 'numpy', 'matplotlib', 'tqdm'} & set(sys.modules)\n"
        "print('heavy:', *heavy)\n"
    )
    assert done.code == 0
    assert done.out.endswith("heavy:\n")


def test_help_has_a_line_for_each_verb(run):
    done = run("--help")
    assert done.code == 0
    for verb in VERBS:
        assert re.search(rf"^    {verb}\s+\w.+$", done.out, re.MULTILINE), verb
    assert "examples:" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ["generate"],
        ["chat"],
        ["eval"],
        ["convert-heads"],
        ["attention"],
        ["demo"],
        ["zoo", "info"],
        ["bench", "decode"],
        ["bench", "prefill"],
        ["bench", "batch"],
        ["bench", "context"],
        ["bench", "startup"],
        ["bench", "plan"],
        ["bench", "scaling"],
        ["plan"],
    ],
    ids=" ".join,
)
def test_help_of_verb_fits_a_terminal_and_shows_defaults(run, words):
    done = run(*words, "--help")
    assert done.code == 0
    assert done.err == ""
    assert max(map(len, done.out.splitlines())) <= 88
    if words != ["zoo", "info"]:
        assert "(default: " in done.out
    assert "None" not in done.out


def test_version_is_that_of_the_distribution(run):
    done = run("--version")
    assert (done.code, done.out) == (
        0,
        f"haiku-mqa {importlib.metadata.version('haiku-mqa')}\n",
    )


@pytest.mark.parametrize("words", [[], ["zoo"], ["bench"]], ids=" ".join)
def test_command_without_verb_prints_help_and_is_misuse(run, words):
    done = run(*words)
    assert done.code == 2
    assert done.err.startswith(f"usage: {' '.join(['haiku-mqa', *words])}")
    assert done.out == ""


def test_module_is_the_command(start):
    process = start("--version")
    assert process.communicate()[0].startswith("haiku-mqa ")
    assert process.returncode == 0


def test_console_script_is_declared():
    [script] = importlib.metadata.entry_points(
        group="console_scripts", name="haiku-mqa"
    )
    assert script.value == "haiku_mqa.cli:main"


def test_debug_may_stand_before_the_verb_or_after():
    parser = build_parser()
    for words in (["--debug", "demo"], ["demo", "--debug"]):
        assert parser.parse_args(words).debug


def test_output_is_readable_where_a_terminal_has_no_unicode(start, tiny, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = start("zoo", "list")
    assert process.wait() == 0
    process = start("generate", "--model", tiny, "--max-new-tokens", 3, "café")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.startswith("caf\\xe9")
