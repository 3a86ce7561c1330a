"""The benches of generation as verbs: options, tables, files and pictures."""

import json
import sys

import pytest

from haiku_mqa.bench import context, startup
from haiku_mqa.bench.startup import Start
from haiku_mqa.config import DecoderConfig
from tests.bench.tiny import decode_with

SHAPE = DecoderConfig(
    vocab_size=32, num_layers=1, num_heads=2, num_kv_heads=2, d_model=8, d_ff=8
)
OPTIONS = {
    "prefill": ("--prompt-tokens", "4,8"),
    "batch": ("--batch-sizes", "1,2", "--prompt-tokens", 4, "--new-tokens", 3),
    "context": ("--contexts", "4,8"),
    "startup": ("--prompt", "to be"),
}


@pytest.fixture
def quick(monkeypatch):
    """Nothing is measured for long, no process is started, and no peer is there."""
    monkeypatch.setattr("haiku_mqa.bench.batch.read_bandwidth", lambda: 1e9)
    for module, name, options in (
        (context, "run_context", {"shape": SHAPE, "decode_with": decode_with}),
        (startup, "run_startup", {"start": lambda words, shown: Start(0.5, 10**9)}),
    ):
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, run=run, o=options, **k: run(*a, **{**k, **o})
        )


@pytest.fixture
def bench(run, quick, tiny, tmp_path):
    """``bench("prefill", ...)`` -> what the verb left behind, and its figures."""

    def command(verb, *words):
        file = tmp_path / f"{verb}.json"
        common = ["--repeats", 1, "--json", file]
        if verb != "context":
            common += ["--model", tiny, "--torch-python", "no-such-python"]
        done = run("bench", verb, *OPTIONS[verb], *common, *words)
        assert done.code == 0, done.err
        return done, json.loads(file.read_text())

    return command


@pytest.mark.parametrize("verb", OPTIONS)
def test_verb_prints_writes_and_draws_what_it_found(bench, tmp_path, verb):
    picture = tmp_path / f"{verb}.png"
    done, data = bench(verb, "--plot", picture)
    assert picture.stat().st_size > 10_000
    assert all(note in done.out for note in data["notes"])
    assert data["title"] in done.out
    assert data["command"].startswith(f"haiku-mqa bench {verb} --")
    assert {"hardware", "versions", "settings"} <= set(data)


@pytest.mark.parametrize("verb", ["prefill", "batch", "startup"])
def test_peer_that_is_not_there_is_said_in_a_line(bench, verb):
    done, _ = bench(verb)
    lines = [line for line in done.out.splitlines() if "not run" in line]
    assert any("transformers" in line and "no-such-python" in line for line in lines)
    if verb == "prefill":
        assert any(line.startswith("llama.cpp is not run") for line in lines)


def test_startup_is_of_the_packed_model_and_of_another(bench, tiny):
    _, data = bench("startup")
    names = dict.fromkeys(program["model"] for program in data["programs"])
    assert list(names) == ["no model", "shakespeare-mqa", str(tiny)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prefill", "--prompt-tokens", "4,x"], "such as 128,1024, got '4,x'"),
        (["prefill", "--prompt-tokens", "0"], "such as 128,1024, got '0'"),
        (["batch", "--batch-sizes", "1;2"], "such as 128,1024, got '1;2'"),
        (["context", "--contexts", "-1"], "such as 128,1024, got '-1'"),
        (["context", "--plot", "a.gif"], "--plot must end in .pdf, .png, .svg"),
        (["startup", "--prompt", ""], "--prompt must hold some text"),
        (["startup", "--model", "smolm2"], "did you mean 'smollm2-135m'?"),
        (["batch", "--model", "smolm2"], "did you mean 'smollm2-135m'?"),
    ],
    ids=" ".join,
)
def test_mistake_is_told_before_the_work(run, words, message):
    done = run("bench", *words)
    assert done.code == 2
    assert message in done.error


def test_prompt_longer_than_the_context_is_misuse(run, tiny):
    done = run("bench", "prefill", "--model", tiny, "--prompt-tokens", "64,128")
    assert done.code == 2
    assert "--prompt-tokens must be below 128, the context of" in done.error
    done = run("bench", "batch", "--model", tiny, "--prompt-tokens", 126)
    assert done.code == 2
    assert "must be at most 128 together" in done.error


def test_file_for_llama_cpp_that_is_not_there_is_a_failure(run, tmp_path):
    done = run("bench", "decode", "--gguf", tmp_path / "none.gguf")
    assert done.code == 1
    assert "No such file or directory" in done.error


def test_decode_runs_peers_of_another_python(run, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    words = ("--prompt-tokens", 2, "--new-tokens", 2, "--repeats", 1)
    done = run("bench", "decode", "--model", tiny, *words, "--torch-python", "nowhere")
    assert done.code == 0, done.err
    assert "transformers, float32, is not run" in done.out
    assert "llama.cpp is not run" in done.out


# --- An accelerator -----------------------------------------------------------------


def test_accelerator_that_is_not_here_is_one_clear_line(run):
    done = run("bench", "accelerator", "--preset", "tiny")
    assert done.code == 2
    assert done.error.startswith("no accelerator is here: jax runs on cpu")
    done = run("bench", "accelerator", "--device", "tpu")
    assert done.error == "device must be cpu, what jax runs on here, got tpu"


def test_accelerator_is_measured_end_to_end_on_a_cpu(run, monkeypatch):
    monkeypatch.setattr("haiku_mqa.bench.accelerator.read_bandwidth", lambda size: 1e9)
    words = ("--device", "cpu", "--preset", "tiny", "--prompt-tokens", 8)
    words += ("--new-tokens", 3, "--repeats", 1, "--torch-python", "no-such-python")
    done = run("bench", "accelerator", *words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    for what in ("memory", "matrix products", "decode", "prefill", "attention"):
        assert any(line.startswith(what) for line in lines), what
    assert any("transformers is not run" in line for line in lines)
    assert "haiku_mqa" in done.err
