"""One cache of compiled programs for all small runs, in this process and in others."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def cache(compiled_folder):
    return compiled_folder


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    """Has a program that one run compiled be found by the next."""
