import subprocess
import sys
import time

import pytest

from haiku_mqa.errors import PluginError
from haiku_mqa.zoo import Entry, discover, load

GROUP = "zoo_tests.models"  # nobody else's, so that what is installed does not show

GOOD = """
import types
def make(name="good", api_version=1):
    metadata = types.SimpleNamespace(
        description="", license="MIT", citation="", source="", sha256=None,
        capabilities=("logits",))
    return types.SimpleNamespace(
        api_version=api_version, name=name, version="1", config={}, metadata=metadata,
        init=print, apply=print, init_cache=print, load_params=None,
        load_tokenizer=None)
"""


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """``declare(name, entries, ...)`` puts a distribution on ``sys.path``."""
    before = set(sys.modules)

    def put(
        name, entries, *, version="1.0", code="", folder="site", suffix=".dist-info"
    ):
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version}{suffix}"
        info.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        file = "METADATA" if suffix == ".dist-info" else "PKG-INFO"
        (info / file).write_text(metadata)
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
        (site / f"{name.replace('-', '_')}.py").write_text(code)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        return info

    yield put
    for module in set(sys.modules) - before:
        del sys.modules[module]


def test_discover_lists_name_value_and_distribution_without_importing(declare):
    declare("plug", "tiny = plug:make", code="raise RuntimeError('imported')")
    assert discover(GROUP) == {"tiny": Entry("tiny", "plug:make", "plug", "1.0")}
    assert "plug" not in sys.modules


def test_discover_is_sorted_by_name(declare):
    declare("one", "zebra = one:f\nant = one:f")
    declare("two", "moth = two:f")
    assert list(discover(GROUP)) == ["ant", "moth", "zebra"]


def test_discover_takes_from_no_other_group(declare):
    info = declare("plug", "tiny = plug:make")
    text = f"[console_scripts]\nplug = plug:main\n[{GROUP}.more]\nother = plug:f\n"
    (info / "entry_points.txt").write_text(f"{text}[{GROUP}]\ntiny = plug:make\n")
    assert list(discover(GROUP)) == ["tiny"]


def test_discover_reads_comments_blank_lines_and_extras(declare):
    declare("plug", "# models\n\n; more\ntiny = plug:make [extra]")
    assert discover(GROUP)["tiny"].error is None


@pytest.mark.parametrize("name", ["Tiny", "ti ny", "tiny/1", "tïny"])
def test_discover_gives_an_invalid_name_an_error(declare, name):
    declare("plug", f"{name} = plug:make\nfine = plug:make")
    entries = discover(GROUP)
    assert entries[name].error == (
        f"its name must be of [a-z0-9._-], got {name!r}, in plug 1.0"
    )
    assert entries["fine"].error is None


@pytest.mark.parametrize("value", ["", "plug", "plug:", ":make", "plug.make()", "9:f"])
def test_discover_gives_an_unparsable_value_an_error(declare, value):
    declare("plug", f"tiny = {value}\nfine = plug:make")
    entries = discover(GROUP)
    assert entries["tiny"].error == (
        f"its value must be module:attribute, got {value!r}, in plug 1.0"
    )
    assert entries["fine"].error is None


def test_discover_survives_a_line_that_is_no_entry(declare):
    declare("broken", "just words")
    declare("plug", "tiny = plug:make")
    entries = discover(GROUP)
    assert "got 'just words', in broken 1.0" in str(entries["just words"].error)
    assert entries["tiny"].error is None


def test_discover_names_both_distributions_of_one_name(declare):
    declare("one", "tiny = one:make\nonly = one:make")
    declare("two", "tiny = two:make", version="2.0")
    entries = discover(GROUP)
    error = str(entries["tiny"].error)
    assert "one 1.0" in error
    assert "two 2.0" in error
    assert entries["only"].error is None


def test_discover_tells_a_name_declared_twice_by_one_distribution(declare):
    declare("plug", "tiny = plug:make\ntiny = plug:other")
    assert discover(GROUP)["tiny"].error == "declared 2 times by plug 1.0"


def test_discover_counts_a_distribution_found_twice_once(declare):
    declare("my-plug", "tiny = my_plug:old", version="0.1", folder="later")
    declare("my.plug", "tiny = my_plug:make", suffix=".egg-info")
    entry = discover(GROUP)["tiny"]
    assert (entry.value, entry.error) == ("my_plug:make", None)


def test_discover_survives_damaged_metadata(declare):
    info = declare("plug", "tiny = plug:make")
    (info / "METADATA").unlink()
    unreadable = declare("latin", "tiny = latin:make")
    (unreadable / "entry_points.txt").write_bytes(b"[\xff\xfe")
    entry = discover(GROUP)["tiny"]
    assert (entry.distribution, entry.error) == ("(unnamed)", None)


def test_load_returns_what_the_factory_made(declare):
    declare("plug", "good = plug:make", code=GOOD)
    assert load("good", GROUP).name == "good"


def test_load_names_the_nearest_of_an_unknown_name(declare):
    declare("plug", "good = plug:make\nother = plug:make", code=GOOD)
    with pytest.raises(ValueError, match="unknown model 'goood': did you mean 'good'"):
        load("goood", GROUP)


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("raise RuntimeError('no such device')", RuntimeError, "no such device"),
        ("import not_installed_anywhere", ModuleNotFoundError, "not_installed_any"),
        ("def make(:", SyntaxError, "invalid syntax"),
        ("raise SystemExit(3)", SystemExit, "SystemExit: 3"),
        ("import sys\ndef make(): sys.exit('bye')", SystemExit, "SystemExit: bye"),
        ("def make(): return 1 / 0", ZeroDivisionError, "division by zero"),
        ("def make(): raise KeyError", KeyError, "KeyError"),
        ("def other(): ...", AttributeError, "make"),
        ("make = 3", TypeError, "not callable"),
        ("def make(needed): ...", TypeError, "needed"),
        ("def make(): ...", ValueError, "(a NoneType) lacks: api_version"),
        (GOOD + "make = lambda m=make: m('other')", ValueError, "name must be 'bad'"),
        (GOOD + "make = lambda m=make: m('bad', 2)", ValueError, "api_version 2"),
    ],
)
def test_load_tells_whose_plugin_failed_and_why(declare, code, kind, text):
    declare("plug", "bad = plug:make", version="0.7", code=code)
    declare("fine", "good = fine:make", code=GOOD)
    with pytest.raises(PluginError) as caught:
        load("bad", GROUP)
    message = str(caught.value)
    assert message.startswith("model 'bad' (plug:make) of plug 0.7 could not be load")
    assert text in message
    assert kind.__name__ in message
    assert type(caught.value.__cause__) is kind
    assert load("good", GROUP).name == "good"


def test_load_lets_an_interrupt_through(declare):
    declare("plug", "slow = plug:make", code="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load("slow", GROUP)


def test_load_of_a_conflict_names_both_distributions_and_imports_neither(declare):
    declare("one", "tiny = one:make", code=GOOD)
    declare("two", "tiny = two:make", code=GOOD)
    with pytest.raises(PluginError, match=r"(?=.*one 1\.0)(?=.*two 1\.0)"):
        load("tiny", GROUP)
    assert not {"one", "two"} & set(sys.modules)


def test_entry_loads_itself(declare):
    declare("plug", "good = plug:make", code=GOOD)
    assert discover(GROUP)["good"].load().version == "1"


def test_listing_imports_no_jax_and_takes_under_half_a_second():
    code = "from haiku_mqa.zoo import discover; discover()"
    command = [sys.executable, "-X", "importtime", "-c", code]
    seconds = []
    for _ in range(3):  # the quickest: other work on the machine is not ours
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        imported = {
            line.rpartition("|")[2].strip().partition(".")[0]
            for line in done.stderr.splitlines()
        }
        assert "haiku_mqa" in imported
        assert not {"jax", "jaxlib", "haiku", "numpy", "tqdm"} & imported
    assert min(seconds) < 0.5
