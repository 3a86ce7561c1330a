"""Profiles, options and fixtures that every test shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import pytest

from tests import tables

REPOSITORY = Path(__file__).parents[1]

pytest_terminal_summary = tables.pytest_terminal_summary

# Files that take longest, longest first: workers that begin with them end together,
# where one that began them last would be left to run on alone.
LONGEST = (
    "tests/test_pages.py",
    "tests/test_readme.py",
    "tests/laws/test_decoder_laws.py",
    "tests/test_doctests.py",
    "tests/laws/test_sharding_laws.py",
    "tests/test_notebooks.py",
    "tests/laws/test_mutants.py",
    "tests/test_examples.py",
    "tests/laws/test_memory_laws.py",
    "tests/training/test_scan.py",
    "tests/training/run/test_loop.py",
    "tests/training/run/test_kills.py",
)

# No deadline anywhere: a first example compiles, and would look like a slow one.
hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
hypothesis.settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
# Tests are of what there is everywhere; those of the kernels switch them on.
os.environ.setdefault("HAIKU_MQA_KERNELS", "off")
_DEFAULT = "ci" if os.environ.get("CI", "").lower() == "true" else "dev"
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _DEFAULT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden anew from the code as it is, instead of comparing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Has this process see eight devices; most tests use the first alone."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; all others stay where they are."""
    places = {REPOSITORY / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Frees what a module compiled: thousands of programs would fill the memory."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs keep what they compile, in this process and in others."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # what all workers share
    folder = base / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def compiled_once(compiled_folder: Path):
    """Has a program that one run compiled be found by the next, which makes its own."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = {
        "jax_compilation_cache_dir": str(compiled_folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written rather than compared."""
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct's GGUF file, fetched once into the user's own cache."""
    from haiku_mqa.zoo.entries import SMOLLM2_135M_FILE
    from haiku_mqa.zoo.sources import fetch

    return fetch(SMOLLM2_135M_FILE)


@pytest.fixture
def record_law(record_property):
    """Puts a law's result into the table printed at the end."""
    return lambda result: record_property(tables.LAW, tables.law_row(result))


@pytest.fixture
def record_kill(record_property):
    """Puts a killed mutant into the table printed at the end."""
    return lambda *kill: record_property(tables.KILL, tables.kill_row(*kill))


@pytest.fixture
def record_parity(record_property):
    """Puts how far logits are from another library's into a table at the end."""
    return lambda *row: record_property(tables.PARITY, tables.parity_row(*row))
