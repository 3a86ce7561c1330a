"""The code blocks of a Markdown page, and how each kind of them is put to the test.

Every block is executed or checked, and a block of an unknown kind is an error: a page
holds nothing that nobody ever ran.
"""

from __future__ import annotations

import atexit
import configparser
import contextlib
import dataclasses
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import hypothesis
from hypothesis.errors import InvalidArgument

REPOSITORY = Path(__file__).parents[1]
SECONDS = 600  # for one command; the first fetches weights and compiles
ANYTHING = "..."  # in a shown output: whatever stands there

# What takes minutes as a reader types it, and what is run in its place.
SHORTENED = {
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
    "haiku-mqa train --out runs/first": "haiku-mqa train --out runs/first --steps 10 "
    "--set data.batch_size=2 sample_tokens=8",
    "haiku-mqa train --out runs/novel --data novel.txt --steps 3000": "haiku-mqa train "
    "--out runs/novel --data novel.txt --steps 5 --set model.num_layers=1 "
    "data.batch_size=2 sample_tokens=8",
    "haiku-mqa train --out runs/wide --set model.d_model=256 model.num_heads=8": ""
    "haiku-mqa train --out runs/wide --steps 2 --set model.d_model=256 "
    "model.num_heads=8 model.num_layers=1 data.batch_size=2 data.validation=0.01 "
    "sample_tokens=8",
    "haiku-mqa train --config nanogpt-cpu --out runs/multi-head": "haiku-mqa train "
    "--config nanogpt-cpu --out runs/multi-head --steps 10 --set data.batch_size=2 "
    "sample_tokens=8",
    "haiku-mqa train --init runs/multi-query --out runs/healed --steps 100": ""
    "haiku-mqa train --init runs/multi-query --out runs/healed --steps 2 --set "
    "data.batch_size=2 sample_tokens=8",
    "haiku-mqa train --config shakespeare-mqa --out runs/shakespeare-mqa": "haiku-mqa "
    "train --config shakespeare-mqa --out runs/shakespeare-mqa --steps 5 --set "
    "model.num_layers=1 data.batch_size=2 data.validation=0.01 sample_tokens=8 "
    "optimizer.decay_steps=2",
    'haiku-mqa generate --model runs/first "ROMEO:"': "haiku-mqa generate "
    '--model runs/first "ROMEO:" --max-new-tokens 16',
    "haiku-mqa eval --model runs/first": "haiku-mqa eval --model runs/first "
    "--batch-size 64",
}
# What a command finds in its folder, because an earlier block made it.
RUN_OF_BEFORE = ("runs/first", "haiku-mqa train --out runs/first")
TEXT_OF_A_READER = ("novel.txt", "It was the best of times, it was the worst.\n" * 200)
# What ends only when it is told to, and where pages that talk to it expect it.
SERVE, ADDRESS = "haiku-mqa serve --model shakespeare-mqa", "http://127.0.0.1:8000"
SETUP = ("python3 -m venv .venv", ". .venv/bin/activate")

_FENCE = re.compile(r"(?P<fence>`{3,}|~{3,})(?P<kind>.*)")
_VARIABLES = re.compile(r"(?:[A-Z_]+=\S+ )+")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: The file.
      line: Of its opening fence, from one.
      kind: What stands behind the fence.
      text: What is inside, without the last newline.
      shown: The output that the page shows right below it; ``None`` if none.
    """

    page: Path
    line: int
    kind: str
    text: str
    shown: str | None = None

    def __str__(self) -> str:
        """Returns where it is."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}-{self.kind}"


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page; a ``text`` block belongs to the one above it."""
    found: list[Block] = []
    after: int | None = None  # where a text block would follow directly
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        match = _FENCE.fullmatch(lines[at].strip())
        if match is None:
            if lines[at].strip():
                after = None
            at += 1
            continue
        end = _closing(lines, at, match["fence"])
        text, kind = "\n".join(lines[at + 1 : end]), match["kind"].strip()
        if kind == "text" and after is not None:
            found[after] = dataclasses.replace(found[after], shown=text)
            after = None
        else:
            found.append(Block(page, at + 1, kind, text))
            after = len(found) - 1
        at = end + 1
    return found


def _closing(lines: list[str], opening: int, fence: str) -> int:
    for at in range(opening + 1, len(lines)):
        stripped = lines[at].strip()
        if stripped.startswith(fence) and not stripped.strip(fence[0]):
            return at
    raise ValueError(f"the block that line {opening + 1} opens is never closed")


def check(block: Block, folder: Path) -> None:
    """Executes or checks a block.

    Args:
      block: The block.
      folder: An empty folder that commands may write to.

    Raises:
      AssertionError: It fails, prints something else than is shown, or is of a kind
        that nobody knows how to check.
    """
    if block.kind.startswith("{"):
        _check_directive(block)
        return
    checks: dict[str, Callable[[Block, Path], None]] = {
        "python": _check_python,
        "bash": _check_bash,
        "toml": lambda block, _: _parsed(tomllib.loads, block),
        "ini": lambda block, _: _parsed(_ini, block),
        "bibtex": _check_bibtex,
    }
    assert block.kind in checks, (
        f"{block}: a block of kind {block.kind!r} that nothing checks; kinds are "
        f"{', '.join(checks)}, and text right below python or bash"
    )
    assert block.shown is None or block.kind in ("python", "bash"), str(block)
    checks[block.kind](block, folder)


# --- Python -----------------------------------------------------------------------


def _check_python(block: Block, _: Path) -> None:
    text = block.text
    if ADDRESS in text:
        text = text.replace(ADDRESS, _server())
    # Newlines before it, so that a traceback names lines of the page.
    code = compile("\n" * block.line + text, str(block.page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    check_output(block, printed.getvalue())


def check_output(block: Block, printed: str) -> None:
    """Holds what was printed to what is shown.

    Args:
      block: The block that was executed.
      printed: Its output.

    Raises:
      AssertionError: They differ, or something was printed and nothing is shown.
    """
    shown = (block.shown or "").strip()
    printed = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    if ANYTHING in shown:
        pattern = ".*?".join(map(re.escape, shown.split(ANYTHING)))
        assert re.fullmatch(pattern, printed, re.DOTALL), (
            f"{block} shows\n{shown}\nand prints\n{printed}"
        )
    else:
        assert printed == shown, f"{block} shows\n{shown}\nand prints\n{printed}"


# --- Commands -----------------------------------------------------------------------


def _check_bash(block: Block, folder: Path) -> None:
    printed = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        for command in line.strip().split(" && "):
            printed += run(command, folder)
    if block.shown is not None:
        check_output(block, printed)


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
        with urllib.request.urlopen(f"{_server()}/health", timeout=60) as answer:
            assert answer.status == 200
        return ""
    words = shlex.split(_VARIABLES.sub("", command, count=1))
    if words[0] == "haiku-mqa":
        _prepare(command, folder)
        words = shlex.split(SHORTENED.get(command, command))
        return _run_ours(words, folder, typed)
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
    name, making = RUN_OF_BEFORE
    if name in command.split() and command != making and not (folder / name).exists():
        shutil.copytree(_run_of_before() / name, folder / name)


@functools.cache
def _run_of_before() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    run(RUN_OF_BEFORE[1], Path(folder.name))
    return Path(folder.name)


@functools.cache
def _server() -> str:
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


def _run_ours(words: list[str], folder: Path, typed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "haiku_mqa", *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        input=typed,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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


# --- What is only read --------------------------------------------------------------


def _parsed(parse: Callable[[str], object], block: Block) -> None:
    assert parse(block.text), f"{block} says nothing"


def _ini(text: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser.sections()


def _check_bibtex(block: Block, _: Path) -> None:
    for entry in re.split(r"\n(?=@)", block.text):
        assert re.match(r"@\w+\{\w+,\n", entry), f"{block}: no entry in {entry!r}"
        assert entry.count("{") == entry.count("}"), f"{block}: braces of {entry!r}"
        fields = dict(re.findall(r"^  (\w+) +?= \{(.*)\},$", entry, re.MULTILINE))
        assert {"title", "author", "year"} <= set(fields), f"{block}: {entry!r}"
        if "version" in fields:
            assert fields["version"] == metadata.version("haiku-mqa")


def _check_directive(block: Block) -> None:
    """Sphinx executes directives; its build fails on one that is not right."""
    assert block.page.parent != REPOSITORY, f"{block}: a directive outside docs/"
