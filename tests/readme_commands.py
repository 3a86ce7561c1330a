"""The commands of the Markdown pages: how each is run, or held to what there is."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import hypothesis
from click.testing import CliRunner
from hypothesis.errors import InvalidArgument
from llm.cli import cli as llm_cli

from haiku_mqa.cli import main

REPOSITORY = Path(__file__).parents[1]

# What takes minutes as a reader types it, and what is run in its place. Most of the
# time is compilation: hence one layer, and AdamW without Muon's iterations, where a
# page does not show what came of more.
SHORTENED = {
    'haiku-mqa generate --model smollm2-135m "The capital of France is"': "haiku-mqa "
    'generate --model smollm2-135m "The capital of France is" --max-new-tokens 4',
    "haiku-mqa generate --model smollm2-135m --quantize int8 "
    '"The capital of France is"': "haiku-mqa generate --model smollm2-135m "
    '--quantize int8 "The capital of France is" --max-new-tokens 4',
    "haiku-mqa eval": "haiku-mqa eval --batch-size 64 --stride 256",
    "haiku-mqa bench decode": "haiku-mqa bench decode --model mqa-decoder "
    "--prompt-tokens 8 --new-tokens 4 --repeats 1",
    "haiku-mqa bench prefill": "haiku-mqa bench prefill --model mqa-decoder "
    "--prompt-tokens 8 --repeats 1",
    "haiku-mqa bench batch": "haiku-mqa bench batch --model mqa-decoder "
    "--batch-sizes 1,2 --prompt-tokens 8 --new-tokens 2 --repeats 1",
    "haiku-mqa bench accelerator": "haiku-mqa bench accelerator --device cpu "
    "--preset tiny --prompt-tokens 8 --new-tokens 2 --repeats 1",
    "haiku-mqa bench context": "haiku-mqa bench context --contexts 16 --repeats 1",
    "haiku-mqa bench engine": "haiku-mqa bench engine --model mqa-decoder "
    "--requests 3 --slots 2 --prompt-tokens 8 --new-tokens 4 --repeats 1",
    "haiku-mqa bench startup": "haiku-mqa bench startup --model shakespeare-mqa "
    "--repeats 1",
    "haiku-mqa bench speculative --prompt "
    '"the rain in Spain stays mainly in the rain"': "haiku-mqa bench speculative "
    '--model shakespeare-mqa --prompt "the rain" --new-tokens 4 --repeats 1',
    "haiku-mqa zoo check mqa-decoder": "haiku-mqa zoo check mqa-decoder --examples 1",
    "haiku-mqa zoo check mqa-decoder --laws causality,chunks": ""
    "haiku-mqa zoo check mqa-decoder --laws causality,chunks --examples 1",
    "haiku-mqa train --out runs/first": "haiku-mqa train --out runs/first --steps 10 "
    "--set data.batch_size=2 sample_tokens=8",
    "haiku-mqa train --out runs/novel --data novel.txt --steps 3000": "haiku-mqa train "
    "--out runs/novel --data novel.txt --steps 5 --set model.num_layers=1 "
    "data.batch_size=2 sample_tokens=8 optimizer.name=adamw",
    "haiku-mqa train --out runs/wide --set model.d_model=256 model.num_heads=8": ""
    "haiku-mqa train --out runs/wide --steps 2 --set model.d_model=256 "
    "model.num_heads=8 model.num_layers=1 data.batch_size=2 data.validation=0.01 "
    "sample_tokens=8 optimizer.name=adamw",
    "haiku-mqa train --config nanogpt-cpu --out runs/multi-head": "haiku-mqa train "
    "--config nanogpt-cpu --out runs/multi-head --steps 10 --set data.batch_size=2 "
    "data.validation=0.01 sample_tokens=8",
    "haiku-mqa convert-heads runs/multi-head runs/multi-query --kv-heads 1": ""
    "haiku-mqa convert-heads runs/multi-head runs/multi-query --kv-heads 1 "
    "--characters 2000",
    "haiku-mqa train --init runs/multi-query --out runs/healed --steps 100": ""
    "haiku-mqa train --init runs/multi-query --out runs/healed --steps 2 --set "
    "data.batch_size=2 data.validation=0.01 sample_tokens=8 optimizer.name=adamw",
    "haiku-mqa train --config shakespeare-mqa --out runs/shakespeare-mqa": "haiku-mqa "
    "train --config shakespeare-mqa --out runs/shakespeare-mqa --steps 5 --set "
    "model.num_layers=1 data.batch_size=2 data.validation=0.01 sample_tokens=8 "
    "optimizer.decay_steps=2",
    "JAX_NUM_CPU_DEVICES=8 haiku-mqa train --mesh data=2,tensor=4 --out runs/wide": ""
    "haiku-mqa train --mesh data=2,tensor=4 --out runs/wide --steps 2 --set "
    "model.num_layers=1 data.batch_size=2 data.validation=0.01 sample_tokens=8 "
    "optimizer.name=adamw",
    'haiku-mqa generate --model runs/first "ROMEO:"': "haiku-mqa generate "
    '--model runs/first "ROMEO:" --max-new-tokens 16',
    "haiku-mqa eval --model runs/first": "haiku-mqa eval --model runs/first "
    "--batch-size 64 --stride 128",
}
# What a command finds in its folder, because an earlier block made it.
RUN_OF_BEFORE = ("runs/first", "haiku-mqa train --out runs/first")
TEXT_OF_A_READER = ("novel.txt", "It was the best of times, it was the worst.\n" * 200)
# What ends only when it is told to, and where pages that talk to it expect it.
SERVE, ADDRESS = "haiku-mqa serve --model shakespeare-mqa", "http://127.0.0.1:8000"
SETUP = ("python3 -m venv .venv", ". .venv/bin/activate")

_VARIABLES = re.compile(r"(?:[A-Z_]+=\S+ )+")


def run(command: str, folder: Path) -> str:
    """Runs a command, or, where that would nest environments or pytest, checks it.

    Args:
      command: One command, without ``&&``.
      folder: What it may write to.

    Returns:
      What it printed.

    Raises:
      AssertionError: It fails, or is not a command that is known here.
    """
    if command in SETUP or command == "bash .ci/run":
        assert command in SETUP or (REPOSITORY / ".ci/run").is_file()
        return ""
    said, piped, rest = command.partition(" | ")
    if piped and said.startswith("echo "):
        typed, command = f"{' '.join(shlex.split(said)[1:])}\n", rest
    else:
        typed = ""
    if command == SERVE:
        with urllib.request.urlopen(f"{server_address()}/health", timeout=60) as answer:
            assert answer.status == 200
        return ""
    words = shlex.split(_VARIABLES.sub("", command, count=1))
    if words[0] == "haiku-mqa":
        if command == RUN_OF_BEFORE[1]:
            shutil.copytree(_run_of_before().folder, folder, dirs_exist_ok=True)
            return _run_of_before().printed
        _prepare(command, folder)
        return _run_ours(command, folder, typed)
    if words[0] == "llm":
        return _run_llm(words)
    if words[:2] == ["pip", "install"]:
        _check_install(words[2:])
    elif words[0] == "pytest":
        _check_pytest(command, words[1:])
    else:
        assert _is_run_by_ci(command), f"nothing runs or checks {command!r}"
    return ""


def _prepare(command: str, folder: Path) -> None:
    """Puts into a folder what a command takes from blocks before its own."""
    name, text = TEXT_OF_A_READER
    if name in command:
        (folder / name).write_text(text)
    name, _ = RUN_OF_BEFORE
    if name in command.split() and not (folder / name).exists():
        shutil.copytree(_run_of_before().folder / name, folder / name)


class _Ran(NamedTuple):
    """What a command left in its folder, and what it printed."""

    folder: Path
    printed: str


@functools.cache
def _run_of_before() -> _Ran:
    """Trains once for all blocks that show this run, or take what it left."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    printed = _run_ours(RUN_OF_BEFORE[1], Path(folder.name), typed="")
    return _Ran(Path(folder.name), printed)


@functools.cache
def server_address() -> str:
    """Returns the address of the pages' server, begun once and ended with all tests."""
    process = subprocess.Popen(
        [sys.executable, "-m", "haiku_mqa", *shlex.split(SERVE)[1:], "--port", "0"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    atexit.register(process.wait)
    atexit.register(process.terminate)
    told = ""
    while not (found := re.search(r"serving .* on (http://[^;]+);", told)):
        told = process.stderr.readline()
        assert told, "the server ended"
    return found[1]


_printed_before: dict[tuple[str, str], str] = {}


def _run_ours(command: str, folder: Path, typed: str) -> str:
    """Runs a command, or tells what it printed before, where it left nothing behind.

    Pages repeat commands, and show more or less of what they print.
    """
    if (command, typed) in _printed_before:
        return _printed_before[command, typed]
    before = set(folder.rglob("*"))
    printed = _run_here(SHORTENED.get(command, command), folder, typed)
    if set(folder.rglob("*")) == before:
        _printed_before[command, typed] = printed
    return printed


def _run_here(command: str, folder: Path, typed: str) -> str:
    """Runs a command of ours in this process, which has imported all and compiled much.

    That each also runs in a process of its own, tests/cli shows.
    """
    words = shlex.split(_VARIABLES.sub("", command, count=1))
    printed, said = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="utf-8")
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "stdin", given),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
    ):
        code = main(words[1:])
    assert code == 0, f"{shlex.join(words)}\n{printed.getvalue()}\n{said.getvalue()}"
    return printed.getvalue()


def _run_llm(words: list[str]) -> str:
    """Runs a command of the host llm, which finds this package by itself."""
    with tempfile.TemporaryDirectory() as user:
        ran = CliRunner(env={"LLM_USER_PATH": user}).invoke(llm_cli, words[1:])
    assert ran.exit_code == 0, f"{shlex.join(words)}\n{ran.output}"
    return ran.output


def _check_install(words: list[str]) -> None:
    """The environment that the tests run in is the install; extras must exist."""
    extras = metadata.metadata("haiku-mqa").get_all("Provides-Extra") or []
    for word in words:
        match = re.fullmatch(r"(?:\.|haiku-mqa)(?:\[([a-z,]+)\])?", word)
        assert match, f"pip install {word}: not this distribution"
        for extra in filter(None, (match[1] or "").split(",")):
            assert extra in extras, f"no extra {extra!r}; there are {extras}"


def _check_pytest(command: str, words: list[str]) -> None:
    """pytest inside pytest would never end; its words must mean something."""
    profile = re.search(r"HYPOTHESIS_PROFILE=(\w+)", command)
    if profile:
        try:
            hypothesis.settings.get_profile(profile[1])
        except InvalidArgument:
            raise AssertionError(f"no Hypothesis profile {profile[1]!r}") from None
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    markers = pyproject["tool"]["pytest"]["ini_options"]["markers"]
    known = {marker.partition(":")[0] for marker in markers}
    while words:
        word = words.pop(0)
        if word == "-m":
            assert words.pop(0) in known, command
        elif word == "-n":
            assert words.pop(0).isdecimal(), command
        elif word.startswith("-"):
            assert word == "--update-golden", command
        else:
            assert (REPOSITORY / word).exists(), command


def _is_run_by_ci(line: str) -> bool:
    script = (REPOSITORY / ".ci/run").read_text().splitlines()
    return line in (own.strip() for own in script)
