"""The pages of docs/: every block in them is run, or held to the code."""

from __future__ import annotations

import pytest

from tests.readme_blocks import README, blocks_to_run, check


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    """Has a block find the programs that blocks before it compiled."""


@pytest.mark.parametrize(
    "block", [block for block in blocks_to_run() if block.page != README], ids=str
)
def test_block_does_what_the_page_says(block, tmp_path):
    check(block, tmp_path)
