"""The bench: that it runs, and reports what it says it does. Nothing is timed here."""

import json
import sys

import jax
import numpy as np
import pytest

from haiku_mqa import bench, load_pretrained
from haiku_mqa.bench.peers import state_dict
from haiku_mqa.cli.bench import _text

FIELDS = {
    "bandwidth_bytes_per_second",
    "bandwidth_runs",
    "device",
    "model",
    "new_tokens",
    "parameters",
    "programs",
    "prompt_tokens",
    "remarks",
    "repeats",
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
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)


def test_bench_runs_and_writes_every_figure(run, tiny, tmp_path, alone):
    file = tmp_path / "decode.json"
    words = ("--prompt-tokens", 5, "--new-tokens", 4, "--repeats", 3, "--json", file)
    done = run("bench", "decode", "--model", tiny, *words)
    assert done.code == 0, done.err
    data = json.loads(file.read_text())
    assert set(data) == FIELDS
    assert (data["prompt_tokens"], data["new_tokens"], data["repeats"]) == (5, 4, 3)
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
    assert line.startswith("transformers is left out: torch and transformers not")
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
    """A program whose runs take the seconds that it is told."""

    def __init__(self, name, log, seconds, tokens):
        self.name, self.dtype, self.weight_bytes = name, "float32", 1000
        self._log, self._seconds, self._tokens = log, iter(seconds), tokens

    def run(self, prompt, new_tokens):
        self._log.append(self.name)
        seconds = next(self._seconds)
        return bench.Timing(seconds, seconds, self._tokens)


@pytest.fixture
def scripted():
    log = []
    programs = [
        _Scripted("a", log, [9.0, 1.0, 2.0, 4.0], (1, 2, 3)),
        _Scripted("b", log, [9.0, 2.0, 8.0, 4.0], (1, 5, 3)),
    ]
    bandwidths = iter([1e3, 5e3, 2e3])
    timings, measured = bench.take_turns(
        programs,
        [7, 7],
        new_tokens=3,
        repeats=3,
        measure_bandwidth=lambda: (log.append("memory"), next(bandwidths))[1],
    )
    report = bench.DecodeReport(
        model="m",
        parameters=250,
        device="cpu",
        prompt_tokens=2,
        new_tokens=3,
        repeats=3,
        bandwidths=tuple(measured),
        standings=tuple(
            bench.Standing.of(program, runs, 2)
            for program, runs in zip(programs, timings, strict=True)
        ),
        remarks=("c is left out",),
    )
    return log, report


def test_programs_take_turns_after_each_was_warmed_up(scripted):
    log, _ = scripted
    assert log == ["a", "b", *["memory", "a", "b"] * 3]


def test_figures_are_medians_of_what_was_timed_after_warming_up(scripted):
    _, report = scripted
    ours, peer = report.standings
    assert (ours.prefill, ours.decode) == (1.0, 1.0)  # 2 tokens, and 2, in 2 seconds
    assert (peer.prefill, peer.decode) == (0.5, 0.5)
    assert report.bandwidth == 2e3
    assert report.limit(ours) == 2.0
    data = report.to_dict()
    assert [program["decode_ratio"] for program in data["programs"]] == [1.0, 2.0]
    assert data["programs"][0]["fraction_of_limit"] == 0.5


def test_table_shows_ratios_and_where_tokens_part(scripted):
    _, report = scripted
    text = _text(report)
    row = next(line for line in text.splitlines() if line.startswith("b "))
    assert row.split() == ["b", "float32", "0.5", "2.00x", "0.5", "2.00x", "25%", "1/3"]
    assert text.endswith("c is left out")


def test_bandwidth_is_measured_on_an_accelerator_too(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bench.read_bandwidth(size=1 << 16, passes=1) > 0


@pytest.mark.parametrize("load", [0.0, 1000.0])
def test_busy_machine_is_remarked_on(monkeypatch, load):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    assert bool(bench.load_remarks()) == (load > 0)


def test_model_that_is_no_llama_has_no_peer(monkeypatch):
    from haiku_mqa import build
    from tests.models import EXAMPLES, example_params

    monkeypatch.setattr("haiku_mqa.bench.peers._NEEDED", ())
    model = build(EXAMPLES["alibi"])
    peers, remarks = bench.transformers_peers(model, example_params("alibi"))
    assert not peers
    assert "position_embedding" in remarks[0]


@pytest.mark.parity
def test_transformers_says_the_same_with_the_weights_that_it_is_handed(tiny):
    import torch

    loaded = load_pretrained(tiny)
    model, params = loaded.model, loaded.params
    peers, remarks = bench.transformers_peers(model, params)
    assert not remarks
    assert [peer.dtype for peer in peers] == ["float32", "bfloat16"]
    tokens = np.arange(20)[None] % 7
    with torch.inference_mode():
        theirs = peers[0]._llama(input_ids=torch.tensor(tokens)).logits.numpy()
    ours = model.apply(params, None, tokens).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    mine = bench.Ours(model, params).run([1, 2, 3], 6)
    assert peers[0].run([1, 2, 3], 6).tokens == mine.tokens
    assert "lm_head.weight" in state_dict(model.config, params)
