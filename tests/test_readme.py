"""The README: all that it shows is run, or held to the code; and what runs it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from haiku_mqa import zoo
from haiku_mqa.testing import ATTENTION_LAWS, DECODER_LAWS
from tests.readme_blocks import (
    PAGES,
    README,
    Block,
    blocks,
    blocks_to_run,
    check,
    check_output,
)
from tests.readme_commands import SHORTENED, run

BLOCKS = [block for page in PAGES for block in blocks(page)]
QUICKSTART = 25  # lines

MAIN = (
    "python3 -m venv .venv && . .venv/bin/activate && pip install . && "
    'haiku-mqa generate "ROMEO:"'
)
TESTS = (
    'python3 -m venv .venv && . .venv/bin/activate && pip install ".[test]" && pytest'
)
LAWS = {"decoder": DECODER_LAWS, "attention": ATTENTION_LAWS}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    """Has a block find the programs that blocks before it compiled."""


@pytest.mark.parametrize(
    "block", [block for block in blocks_to_run() if block.page == README], ids=str
)
def test_block_does_what_the_readme_says(block, tmp_path):
    check(block, tmp_path)


def test_readme_has_the_two_commands_and_what_one_will_see():
    commands = {block.text: block for block in BLOCKS if block.page == README}
    assert MAIN in commands
    assert TESTS in commands
    assert commands[MAIN].shown


def test_readme_begins_with_a_short_quickstart_inside_a_transform():
    first = next(block for block in BLOCKS if block.page == README)
    assert first.kind == "python"
    assert "hk.transform" in first.text
    assert len(first.text.splitlines()) < QUICKSTART


def test_shortened_commands_are_those_of_pages():
    lines = {line for block in BLOCKS for line in block.text.splitlines()}
    assert set(SHORTENED) <= lines


# --- Facts of the README that the code knows ------------------------------------------


def _law_table(name: str) -> str:
    rows = [
        f"| {law.name} | {law.statement} | {law.tolerance:g} |" for law in LAWS[name]
    ]
    head = ["| law | what it says | allowed error |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows])


@pytest.mark.parametrize("name", LAWS)
def test_readme_lists_every_law_as_the_code_has_it(name, update_golden):
    pattern = re.compile(rf"(?<=<!-- laws: {name} -->\n).*?(?=\n<!-- end -->)", re.S)
    if update_golden:
        text = pattern.sub(lambda _: _law_table(name), README.read_text())
        README.write_text(text)
    table = pattern.search(README.read_text())
    assert table, f"README.md has no table of laws: {name}"
    assert table[0] == _law_table(name), "write it anew with --update-golden"


def test_readme_lists_every_model_that_this_package_declares():
    section = README.read_text().partition("## What is in the zoo")[2]
    listed = re.findall(r"^\| `([^`]+)` \|", section.partition("\n## ")[0], re.M)
    ours = [e.name for e in zoo.discover().values() if e.distribution == "haiku-mqa"]
    assert sorted(listed) == sorted(ours)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    text = re.sub(r"(?s)^(`{3,}).*?^\1", "", page.read_text(), flags=re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


# --- The checker, checked -------------------------------------------------------------


def _page(folder: Path, text: str) -> list[Block]:
    page = folder / "page.md"
    page.write_text(text)
    return blocks(page)


def test_blocks_finds_kinds_texts_and_shown_outputs(tmp_path):
    text = "a\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n````bash\n```\n````\n"
    found = [(b.line, b.kind, b.text, b.shown) for b in _page(tmp_path, text)]
    assert found == [(2, "python", "print(1)", "1"), (10, "bash", "```", None)]


def test_blocks_takes_no_text_that_does_not_follow_directly(tmp_path):
    text = "```python\nx = 1\n```\nand\n```text\n1\n```\n"
    assert [b.kind for b in _page(tmp_path, text)] == ["python", "text"]


def test_blocks_refuses_a_block_that_is_never_closed(tmp_path):
    with pytest.raises(ValueError, match="line 2"):
        _page(tmp_path, "a\n```python\nx = 1\n")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("", "anything"),
        ("text", "an output of nothing"),
        ("ruby", "puts 1"),
        ("python", "print(1)"),
        ("python", "assert False"),
        ("bash", "rm -rf nothing"),
        ("bash", "echo x | make"),
        ("bash", "haiku-mqa zoo info no-such-model"),
        ("bash", 'pip install ".[tests]"'),
        ("bash", "pip install something-else"),
        ("bash", "pytest -m slow"),
        ("bash", "HYPOTHESIS_PROFILE=hourly pytest"),
        ("bash", "pytest tests/no_such_file.py"),
        ("bibtex", "@article{x,\n  title = {No author},\n}"),
        ("{raw} html", "<br>"),
    ],
)
def test_check_fails_a_block_that_is_wrong_or_of_an_unknown_kind(kind, text, tmp_path):
    block = Block(README, 1, kind, text)
    with pytest.raises(AssertionError):
        check(block, tmp_path)


@pytest.mark.parametrize("kind", ["toml", "ini"])
def test_check_fails_a_file_that_does_not_parse(kind, tmp_path):
    with pytest.raises(Exception, match=r"(?i)line"):
        check(Block(README, 1, kind, "= ["), tmp_path)


def test_check_output_takes_three_dots_for_anything():
    block = Block(README, 1, "python", "", shown="a ... d\n...\nz")
    check_output(block, "a b c d\n1\n2\nz\n")
    with pytest.raises(AssertionError):
        check_output(block, "a b c d\n1\n2\ny\n")


def test_run_refuses_a_command_that_nothing_checks(tmp_path):
    with pytest.raises(AssertionError, match="nothing runs or checks"):
        run("make all", tmp_path)


def test_python_blocks_of_the_readme_import_all_they_use():
    for block in BLOCKS:
        if block.page == README and block.kind == "python":
            assert isinstance(
                ast.parse(block.text).body[0], ast.Import | ast.ImportFrom
            )
