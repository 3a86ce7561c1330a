"""Commands run inside this process, on models that are made in no time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from haiku_mqa.cli import main
from haiku_mqa.text import CharacterTokenizer
from haiku_mqa.training import read_corpus
from haiku_mqa.zoo.discovery import GROUP
from tests.folders import write_model_folder
from tests.tiny_gguf import write_tiny_gguf


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that tells what was wrong; there must be no other."""
        lines = [line for line in self.err.splitlines() if "error" in line]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("haiku-mqa: error: ")


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """``run("zoo", "list")`` -> what the command printed, and its exit code."""

    def command(*words: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Result(code, *capfd.readouterr())

    return command


@pytest.fixture
def run_python() -> Run:
    """``run_python(program)`` -> what a fresh interpreter printed."""

    def program(text: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return program


@pytest.fixture
def on_terminal(monkeypatch):
    """``on_terminal()`` has this test's stderr be one."""
    return lambda: monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


@pytest.fixture
def start():
    """``start("generate", ...)`` begins a command in a process of its own."""
    # A test run in the background ignores interrupts, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:

        def begin(*words: object, **options: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "haiku_mqa", *map(str, words)],
                **{
                    "stdout": subprocess.PIPE,
                    "stderr": subprocess.PIPE,
                    "text": True,
                    # Unbuffered, so that what is printed is seen when it is.
                    "env": os.environ | {"PYTHONUNBUFFERED": "1"},
                    **options,
                },
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.fixture(scope="session")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def tiny(_folder: Path) -> Path:
    """The file of a tiny model with a chat template."""
    return write_tiny_gguf(_folder / "tiny.gguf")


@pytest.fixture(scope="session")
def trained(_folder: Path) -> Path:
    """The folder of a tiny model over the characters of the corpus in the package."""
    tokenizer = CharacterTokenizer(read_corpus().text)
    return write_model_folder(_folder / "runs" / "first", tokenizer=tokenizer)


@pytest.fixture(autouse=True)
def cache(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder: of these tests alone, so that they neither read nor leave."""
    folder = _folder / "cache"
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def _compiled_programs_are_forgotten():
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``plugin("name", code)`` installs a plugin whose factory is ``make``."""
    before = set(sys.modules)

    def install(name: str, code: str) -> None:
        module = f"plugin_{name.replace('-', '_')}"
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:make\n")
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    for module in set(sys.modules) - before:
        if module.startswith("plugin_"):
            del sys.modules[module]
