"""The code blocks of a Markdown page, and how each kind of them is put to the test.

Every block is executed or checked, and a block of an unknown kind is an error: a page
holds nothing that nobody ever ran.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import io
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from tests.readme_commands import ADDRESS, REPOSITORY, run, server_address

README = REPOSITORY / "README.md"
PAGES = [
    README,
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "docs/api").glob("*.md")),
]
ANYTHING = "..."  # in a shown output: whatever stands there

_FENCE = re.compile(r"(?P<fence>`{3,}|~{3,})(?P<kind>.*)")


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


def blocks_to_run() -> list[Block]:
    """Returns the blocks of all pages, each once.

    Pages repeat what a reader types first; to run it once shows as much.
    """
    found = [block for page in PAGES for block in blocks(page)]
    said = {(block.kind, block.text, block.shown): block for block in reversed(found)}
    return [block for block in found if block in said.values()]


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


def _check_python(block: Block, folder: Path) -> None:
    text = block.text
    if ADDRESS in text:
        text = text.replace(ADDRESS, server_address())
    # Newlines before it, so that a traceback names lines of the page.
    code = compile("\n" * block.line + text, str(block.page), "exec")
    printed = io.StringIO()
    # What it writes goes where what commands write goes.
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
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
