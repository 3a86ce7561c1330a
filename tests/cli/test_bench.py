"""The bench: that it runs, and reports what it says it does. Nothing is timed here."""

import json

import jax
import pytest

from haiku_mqa import bench, build, load_pretrained
from haiku_mqa.bench import decode_speed
from tests.models import EXAMPLES, example_params

FIELDS = {
    "bandwidth_bytes_per_second",
    "bandwidth_runs",
    "command",
    "hardware",
    "model",
    "notes",
    "parameters",
    "programs",
    "settings",
    "title",
    "versions",
}
PROGRAM_FIELDS = {
    "decode_ratio",
    "decode_runs",
    "decode_tokens_per_second",
    "dtype",
    "fraction_of_limit",
    "limit_tokens_per_second",
    "name",
    "prefill_ratio",
    "prefill_runs",
    "prefill_tokens_per_second",
    "same_tokens",
    "weight_bytes_per_token",
}


@pytest.fixture
def alone(monkeypatch):
    """As if no peer were installed."""
    monkeypatch.setattr("haiku_mqa.bench.peers._NEEDED", ("no_such_library",))


def test_bench_runs_and_writes_every_figure(run, tiny, tmp_path, alone):
    file = tmp_path / "decode.json"
    words = ("--prompt-tokens", 5, "--new-tokens", 4, "--repeats", 3, "--json", file)
    done = run("bench", "decode", "--model", tiny, *words)
    assert done.code == 0, done.err
    data = json.loads(file.read_text())
    assert set(data) == FIELDS
    settings = data["settings"]
    assert (settings["prompt_tokens"], settings["new_tokens"]) == (5, 4)
    assert settings["repeats"] == 3
    assert len(data["bandwidth_runs"]) == 3
    small, ours = data["programs"]
    assert [small["dtype"], ours["dtype"]] == ["int8", "float32"]
    assert ours["weight_bytes_per_token"] == 4 * data["parameters"]
    assert small["weight_bytes_per_token"] < ours["weight_bytes_per_token"]
    for program in (small, ours):
        assert set(program) == PROGRAM_FIELDS
        assert len(program["decode_runs"]) == len(program["prefill_runs"]) == 3
        assert program["fraction_of_limit"] == pytest.approx(
            program["decode_tokens_per_second"] / program["limit_tokens_per_second"]
        )
    assert "haiku_mqa" in done.out
    assert "of the limit" in done.out


def test_peer_that_is_not_installed_is_said_in_a_line(run, tiny, alone):
    words = ("--prompt-tokens", 2, "--new-tokens", 2, "--repeats", 1)
    done = run("bench", "decode", "--model", tiny, *words)
    [line] = [line for line in done.out.splitlines() if "left out" in line]
    assert line.startswith("transformers is left out: no_such_library not installed")
    assert "haiku-mqa[parity]" in line


def test_bench_takes_a_model_without_weights(run, alone):
    words = ("--prompt-tokens", 2, "--new-tokens", 2, "--repeats", 1)
    assert run("bench", "decode", "--model", "mqa-decoder", *words).code == 0


def test_bench_does_not_compile_inside_what_it_times(tiny):
    loaded = load_pretrained(tiny)
    ours = bench.Ours(loaded.model, loaded.params)
    ours.run([1, 2, 3], 5)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if "backend_compile" in event else None
        )
    )
    try:
        timing = ours.run([1, 2, 3], 5)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(timing.tokens) == 5
    assert not compiled


class _Scripted:
    """A peer that takes the seconds it is told, and parts from us at the second token.

    Its warm-up is no run of any figure.
    """

    name, dtype, weight_bytes = "b", "float32", 1000

    def __init__(self, ours, seconds):
        self._ours, self._seconds = ours, iter(seconds)

    def run(self, prompt, new_tokens):
        first, second, *rest = self._ours.run(prompt, new_tokens).tokens
        seconds = next(self._seconds)
        return bench.Timing(seconds, seconds, (first, second + 1, *rest))


@pytest.fixture(scope="module")
def found():
    """What the bench finds of a peer that is told how long to take."""
    model, params = build(EXAMPLES["multi_query"]), example_params("multi_query")
    peer = _Scripted(bench.Ours(model, params), [9.0, 2.0, 8.0, 4.0])
    bandwidths = iter([1e3, 5e3, 2e3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bench.Peers, "add_transformers", lambda self, *_: self.programs.append(peer)
        )
        return decode_speed.run_decode(
            model,
            params,
            prompt_tokens=2,
            new_tokens=3,
            repeats=3,
            measure_bandwidth=lambda: next(bandwidths),
        )


class _Echo:
    def __init__(self, name):
        self.name = name


def test_programs_take_turns_after_each_was_warmed_up():
    log = []
    turns = bench.take_turns(
        [_Echo("a"), _Echo("b")],
        [1, 2],
        lambda program, size: (log.append(program.name), size)[1],
        repeats=2,
        measure=lambda: log.append("memory"),
    )
    assert log == ["a", "b", "a", "b", *["memory", "a", "b", "a", "b"] * 2]
    assert turns.first == [[1, 1], [2, 2]]
    assert turns.runs == [[[1, 1], [1, 1]], [[2, 2], [2, 2]]]


def test_figures_are_medians_of_what_was_timed_after_warming_up(found):
    _, ours, peer = found.data["programs"]
    assert peer["prefill_tokens_per_second"] == 2 / 4
    assert peer["decode_tokens_per_second"] == 2 / 4
    assert found.data["bandwidth_bytes_per_second"] == 2e3
    assert peer["limit_tokens_per_second"] == 2.0
    assert peer["fraction_of_limit"] == 0.25
    small = found.data["programs"][0]
    assert peer["decode_ratio"] == small["decode_tokens_per_second"] / 0.5
    assert ours["same_tokens"] == 3


def test_table_shows_ratios_and_where_tokens_part(found):
    row = found.rows[2]
    assert (row[0], row[2], row[4], row[6]) == ("b", "0.5", "0.5", "25%")
    assert row[3].endswith("x")
    assert row[7] == "1/3"
    assert found.rows[0][3] == ""


def test_bandwidth_is_measured_on_an_accelerator_too(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bench.read_bandwidth(size=1 << 16, passes=1) > 0


@pytest.mark.parametrize("load", [0.0, 1000.0])
def test_busy_machine_is_remarked_on(monkeypatch, load):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    assert bool(bench.load_remarks()) == (load > 0)


def test_model_that_is_no_llama_has_no_peer():
    with bench.Peers("no-such-python") as peers:
        peers.add_transformers(build(EXAMPLES["alibi"]), example_params("alibi"))
    assert not peers.programs
    assert "position_embedding" in peers.absent[0]
