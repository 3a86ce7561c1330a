"""Listing, cost cards, and the verdict of the laws."""

import json

import jax
import pytest

import haiku_mqa.testing
from haiku_mqa import load_pretrained, zoo
from haiku_mqa.testing import LawResult, Report
from tests.folders import write_model_folder

EXITS = "def make():\n    raise SystemExit(3)\n"
OTHER = """
import dataclasses, types
import jax.numpy as jnp

@dataclasses.dataclass
class Config:
    vocab_size: int = 7
    dtype: object = jnp.float32

def make():
    metadata = types.SimpleNamespace(
        description="a bigram table", license="MIT", citation="", source="",
        sha256=None, capabilities=("logits",))
    return types.SimpleNamespace(
        api_version=1, name="other", version="2", config=Config(), metadata=metadata,
        init=lambda rng, tokens: {"bigram": {"w": jnp.zeros((7, 7))}},
        apply=print,
        init_cache=lambda rows, length, dtype: jnp.zeros((length, 3), dtype),
        load_params=None, load_tokenizer=None)
"""


def test_list_shows_every_installed_model(run):
    done = run("zoo", "list")
    assert done.code == 0
    head, *rows = [line.split() for line in done.out.splitlines()]
    assert head == ["name", "distribution", "version"]
    for name in ("mqa-decoder", "shakespeare-mqa", "smollm2-135m"):
        assert [name, "haiku-mqa", haiku_mqa.__version__] in rows


def test_list_imports_no_plugin_unless_asked(run, plugin):
    plugin("broken", EXITS)
    done = run("zoo", "list")
    assert done.code == 0
    assert "broken" in done.out
    assert "error" not in done.out


def test_list_load_tells_of_failures_and_loads_the_others(run, plugin):
    plugin("broken", EXITS)
    done = run("zoo", "list", "--load")
    assert done.code == 1
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert "SystemExit: 3" in rows["broken"]
    assert rows["mqa-decoder"].split() == ["mqa-decoder", "haiku-mqa", "0.1.0"]


def test_list_load_succeeds_where_all_load(run):
    done = run("zoo", "list", "--load")
    assert done.code == 0
    assert "error" not in done.out


def test_list_as_json(run, plugin):
    plugin("broken", EXITS)
    done = run("zoo", "list", "--load", "--json")
    assert done.code == 1
    entries = {entry["name"]: entry for entry in json.loads(done.out)}
    assert entries["mqa-decoder"]["error"] is None
    assert entries["mqa-decoder"]["value"] == "haiku_mqa.zoo.entries:mqa_decoder"
    assert "SystemExit" in entries["broken"]["error"]


def test_list_of_nothing_says_so(run, monkeypatch):
    monkeypatch.setattr("haiku_mqa.cli.zoo_list.discover", dict)
    assert "no installed distribution" in run("zoo", "list").out


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test where weights are fetched, or drawn and not only traced."""
    draw = jax.random.truncated_normal

    def fail(source):
        raise AssertionError("weights were fetched")

    def trace(rng, *args, **options):
        assert isinstance(rng, jax.core.Tracer), "weights were drawn"
        return draw(rng, *args, **options)

    monkeypatch.setattr("haiku_mqa.zoo.entries.fetch", fail)
    monkeypatch.setattr(jax.random, "truncated_normal", trace)


def test_info_tells_the_cost_of_a_model_that_was_never_fetched(run, no_weights):
    done = run("zoo", "info", "smollm2-135m", "--json")
    assert done.code == 0, done.err
    card = json.loads(done.out)
    parts = dict(card["parameters"])
    assert parts.pop("total") == sum(parts.values()) == 134_515_008
    assert parts["embedding"] == 49_152 * 576
    assert parts["attention"] == 30 * 2 * 576 * (576 + 192)
    assert parts["feed_forward"] == 30 * 3 * 576 * 1536
    assert parts["norms"] == 61 * 576
    assert card["weight_bytes"]["bfloat16"] == 2 * 134_515_008
    # A byte a number, a second one for keys and values; norms and scales are float32.
    scales = 49_152 + 30 * (576 + 2 * 2 * 192 + 576 + 2 * 1536 + 576)
    wide = 3 * parts["norms"] + 4 * scales
    assert card["weight_bytes"]["int8"] == 134_515_008 + 30 * 2 * 576 * 192 + wide
    # Keys and values of 30 layers, and two numbers that tell where a token stands.
    numbers, scales = 30 * 2 * 3 * 64, 30 * 2 * 3
    assert card["cache_bytes"] == {
        "per_token": {
            "float32": 4 * numbers + 8,
            "bfloat16": 2 * numbers + 8,
            "int8": numbers + 4 * scales + 8,
        }
    }
    assert card["license"] == "Apache-2.0"
    assert len(card["sha256"]) == 64
    assert card["config"]["num_kv_heads"] == 3
    assert card["config"] == zoo.load("smollm2-135m").config.to_dict()


def test_info_as_text_has_all_of_it(run):
    done = run("zoo", "info", "smollm2-135m")
    assert done.code == 0
    for text in (
        "134,515,008",
        "538.1 MB",
        "46.1 kB",
        "12.2 kB",
        "unembed (tied)",
        "Apache-2.0",
        "sha256",
        "citation",
        "logits, cache, pretrained, chat",
        "num_kv_heads",
    ):
        assert text in done.out
    assert max(len(line) for line in done.out.splitlines()) < 120


def test_info_tells_of_a_model_folder_without_reading_weights(run, trained, no_weights):
    done = run("zoo", "info", trained, "--json")
    assert done.code == 0, done.err
    card = json.loads(done.out)
    assert card["name"] == "first"
    assert card["source"] == str(trained)
    assert card["parameters"]["embedding"] == 65 * 16
    assert card["config"]["max_length"] == 32
    assert f"a decoder in {trained}" in run("zoo", "info", trained).out


def test_info_tells_what_rings_cost_where_layers_have_windows(run, tmp_path):
    folder = write_model_folder(tmp_path / "m", num_layers=2, sliding_window=(5, None))
    card = json.loads(run("zoo", "info", folder, "--json").out)
    model, costs = load_pretrained(folder).model, card["cache_bytes"]
    for dtype in ("float32", "bfloat16", "int8"):
        row = 4  # bytes: its length
        whole = model.init_cache(1, 30, dtype).nbytes - row
        assert whole == 30 * costs["per_token"][dtype]
        ring = model.init_cache(1, 30, dtype, ring=True).nbytes - row
        assert ring == 30 * costs["per_token_with_rings"][dtype] + costs["rings"][dtype]
    shown = run("zoo", "info", folder).out
    assert "with rings, per token" in shown
    assert "with rings, at once" in shown


def test_info_tells_of_a_model_file(run, tiny):
    done = run("zoo", "info", tiny)
    assert done.code == 0, done.err
    assert str(tiny) in done.out


def test_info_of_a_model_of_other_parts(run, plugin):
    plugin("other", OTHER)
    card = json.loads(run("zoo", "info", "other", "--json").out)
    assert card["parameters"]["other"] == card["parameters"]["total"] == 49
    assert card["weight_bytes"] == {"float32": 4 * 49, "bfloat16": 2 * 49}
    assert card["cache_bytes"] == {"per_token": {"float32": 12, "bfloat16": 6}}
    assert card["config"]["vocab_size"] == 7
    assert "a bigram table" in run("zoo", "info", "other").out


def test_info_of_a_model_whose_init_fails_names_it(run, plugin):
    plugin("other", OTHER.replace("jnp.zeros((7, 7))", "1 / 0"))
    done = run("zoo", "info", "other")
    assert done.code == 1
    assert "model 'other': init failed" in done.error
    assert "ZeroDivisionError" in done.error


def test_check_holds_a_model_to_the_laws(run):
    done = run("zoo", "check", "mqa-decoder", "--examples", 1, "--laws", "shape")
    assert done.code == 0, done.err
    title, head, row = done.out.splitlines()
    assert title.startswith("mqa-decoder ")
    assert head.startswith("law ")
    assert row.endswith("holds")
    assert done.err == ""


@pytest.fixture
def report(monkeypatch):
    """What ``check_decoder`` was asked, and a broken law for an answer."""
    asked = {}

    def check(spec, *, on_law, **options):
        asked.update(options, name=spec.name)
        result = LawResult("causality", 3, 0.5, 0.0, False, "the future leaks")
        on_law(result)
        return Report(spec.name, (result,))

    monkeypatch.setattr(haiku_mqa.testing, "check_decoder", check)
    return asked


def test_check_fails_where_a_law_is_broken(run, report):
    done = run("zoo", "check", "mqa-decoder", "--examples", 3, "--seed", 5)
    assert done.code == 1
    asked = {"examples": 3, "seed": 5, "laws": None}
    assert report == {"name": "mqa-decoder", **asked}
    assert "BROKEN" in done.out
    assert "the future leaks" in done.out
