"""The benches of generation: figures, rows and notes; their speed is not tested."""

import dataclasses
import json
import sys

import jax
import pytest

from haiku_mqa import DecoderConfig, build, load_pretrained
from haiku_mqa.bench import Peers, batch, context, prefill, startup
from haiku_mqa.bench.batch_decode import BatchDecode, cache_bytes_per_token
from haiku_mqa.bench.decode import Timing, weight_bytes_per_token
from haiku_mqa.bench.processes import Answering
from haiku_mqa.bench.startup import Start, peak_memory, start_once
from haiku_mqa.generation.loop import CHUNK
from tests.models import drawn_params
from tests.tiny_gguf import write_tiny_gguf

CONFIG = DecoderConfig(
    vocab_size=32, num_layers=1, num_heads=2, d_model=8, d_ff=8, max_length=64
)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return drawn_params(model)


class _Scripted:
    """A peer whose runs take the seconds that it is told."""

    name, dtype, weight_bytes = "theirs", "bfloat16", 1000

    def __init__(self, seconds):
        self.seen, self._seconds = [], iter(seconds)

    def run(self, prompt, new_tokens):
        return self.run_rows([prompt], new_tokens)

    def run_rows(self, prompts, new_tokens):
        self.seen.append((len(prompts), len(prompts[0]), new_tokens))
        seconds = next(self._seconds)
        return Timing(seconds, 2 * seconds, (1,) * new_tokens)


@pytest.fixture
def with_peer(monkeypatch):
    """``with_peer([seconds, ...])`` -> the peer that stands beside this package."""

    def install(seconds):
        peer = _Scripted(seconds)
        monkeypatch.setattr(
            Peers, "add_transformers", lambda self, *_: self.programs.append(peer)
        )
        return peer

    return install


# --- Prefill ------------------------------------------------------------------------


def test_prefill_takes_medians_of_runs_after_one_that_compiles(
    model, params, with_peer
):
    peer = with_peer([9.0, 9.0, 1.0, 4.0, 2.0, 5.0, 8.0, 6.0])
    found = prefill.run_prefill(
        model, params, lengths=(4, 8), repeats=3, measure_matmul=lambda: 1e6
    )
    assert peer.seen == [(1, 4, 1), (1, 8, 1)] * 4
    short, long = found.data["lengths"]
    int8, ours, theirs = short["programs"]
    assert (int8["dtype"], ours["dtype"]) == ("int8", "float32")
    assert theirs["tokens_per_second"] == 2.0  # 4 tokens, a median of 2 seconds
    assert theirs["tokens_per_second_runs"] == [4.0, 2.0, 0.5]
    assert theirs["flops_per_second"] == short["flops"] / 2
    assert theirs["fraction_of_matmul_rate"] == short["flops"] / 2 / 1e6
    assert long["programs"][2]["tokens_per_second"] == 8 / 5
    assert len(ours["tokens_per_second_runs"]) == 3
    assert [row[:2] for row in found.rows][2:4] == [
        ("4", "theirs"),
        ("8", ours["name"]),
    ]
    ratio = int8["tokens_per_second"] / 2
    assert found.rows[2][4] == f"{ratio:.2f}x"


def test_prefill_flops_are_those_that_xla_counts(model, params):
    cost = []
    for length in (16, 32):
        tokens = jax.ShapeDtypeStruct((1, length), "int32")
        at = jax.ShapeDtypeStruct((1, 1), "int32")

        def read(params, tokens, at):
            return model.apply(params, None, tokens, logits_at=at).logits

        compiled = jax.jit(read).lower(params, tokens, at).compile()
        cost.append(compiled.cost_analysis()["flops"])
        counted = prefill.prefill_flops(model, params, length)
        # XLA also counts what is not a product: norms, rotations, the softmax.
        assert counted < cost[-1] < 3 * counted


# --- Context ------------------------------------------------------------------------

SHAPE = DecoderConfig(
    vocab_size=32, num_layers=1, num_heads=6, num_kv_heads=6, d_model=24, d_ff=48
)


def test_kinds_of_attention_are_called_by_their_names():
    kinds = [context.kind(config) for config in context.variants(SHAPE, 64)]
    assert kinds == ["multi-head", "grouped", "multi-query"]


def test_kinds_of_attention_have_as_many_parameters():
    sizes = {}
    for config in context.variants(SHAPE, 64):
        shapes = jax.tree.leaves(build(config).param_shapes)
        sizes[config.num_kv_heads] = sum(leaf.size for leaf in shapes)
    assert list(sizes) == [6, 2, 1]
    # Half a step of d_ff's, three matrices wide.
    assert max(sizes.values()) - min(sizes.values()) <= 4 * 3 * SHAPE.d_model


def test_context_tells_times_and_bytes_of_each_kind_at_each_length():
    seen = []

    def decode_with(batches, repeats, *, on_run):
        seen.append([batch.bytes_per_step for batch in batches])
        return [[1e-3 * (i + 1)] * repeats for i in range(len(batches))], 1e9

    found = context.run_context(
        contexts=(3, 9),
        repeats=2,
        shape=dataclasses.replace(SHAPE, num_heads=2, num_kv_heads=2),
        decode_with=decode_with,
    )
    models = found.data["models"]
    assert [(m["context"], m["attention"]) for m in models] == [
        (length, kind) for length in (3, 9) for kind in ("multi-head", "multi-query")
    ]
    whole, shared = models[2:]
    assert whole["cache_bytes"] == 9 * 2 * (4 + 4) * 4  # of 2 heads, in float32
    assert shared["cache_bytes"] * 2 == whole["cache_bytes"]
    assert whole["limit_us_per_token"] == pytest.approx(1e6 * seen[1][0] / 1e9)
    assert found.rows[3][4:6] == ("2.00", "0.50x")
    assert found.rows[2][5] == ""


def test_cache_that_is_counted_as_read_stands_where_one_that_was_read_does(
    model, params
):
    rows = [
        BatchDecode(model, params, batch_size=2, context=5, is_read=is_read)
        for is_read in (True, False)
    ]
    for row in rows:
        assert row._start.cache.lengths.tolist() == [5, 5]
        assert row._start.cache.capacity == 5 + CHUNK
        assert row.run() > 0


# --- Batch --------------------------------------------------------------------------


def test_batch_counts_the_tokens_of_all_rows(model, params, with_peer):
    peer = with_peer([9.0, 9.0, 1.0, 4.0, 2.0, 5.0, 8.0, 6.0])
    found = batch.run_batch(
        model,
        params,
        batch_sizes=(1, 3),
        prompt_tokens=4,
        new_tokens=5,
        repeats=3,
        measure_bandwidth=lambda: 1e5,
        measure_matmul=lambda: 1e6,
    )
    assert peer.seen == [(1, 4, 5), (3, 4, 5)] * 4
    theirs = found.data["batches"][1]["programs"][2]
    # A median of 5 seconds for the prompts, and of 10 for what follows.
    assert theirs["prefill_tokens_per_second"] == 3 * 4 / 5
    assert theirs["decode_tokens_per_second"] == 3 * 4 / 10
    assert theirs["all_tokens_per_second"] == 3 * 9 / 15
    assert len(found.rows) == 6


@pytest.mark.parametrize(("bandwidth", "rate"), [(1e5, 1e30), (1e30, 1e6)])
def test_limit_of_a_batch_is_memory_or_products_whichever_is_lower(
    model, params, with_peer, bandwidth, rate
):
    with_peer([1.0] * 4)
    found = batch.run_batch(
        model,
        params,
        batch_sizes=(1, 3),
        prompt_tokens=4,
        new_tokens=5,
        repeats=1,
        measure_bandwidth=lambda: bandwidth,
        measure_matmul=lambda: rate,
    )
    weights = weight_bytes_per_token(model, params)
    for rows, (_, ours, theirs) in zip(
        (1, 3), (each["programs"] for each in found.data["batches"]), strict=True
    ):
        cache = 9 * cache_bytes_per_token(CONFIG)
        if bandwidth < 1e30:
            limits = (
                rows * bandwidth / (weights + rows * cache),
                rows * bandwidth / (1000 + rows * cache / 2),
            )
        else:
            limits = (rate / (2 * weights / 4),) * 2
        assert ours["limit_tokens_per_second"] == pytest.approx(limits[0])
        assert theirs["limit_tokens_per_second"] == pytest.approx(limits[1])


# --- Startup ------------------------------------------------------------------------


def test_startup_tells_seconds_and_memory_beside_what_is_held(tmp_path):
    loaded = load_pretrained(write_tiny_gguf(tmp_path / "tiny.gguf"))
    seen, seconds = [], iter([9.0, 9.0, 1.0, 3.0, 2.0, 8.0, 1.0, 4.0])

    def start(words, shown):
        seen.append((words, shown))
        return Start(next(seconds), 1_000_000)

    found = startup.run_startup(
        [("tiny", loaded)],
        prompt="né",
        repeats=3,
        torch_python="no-such-python",
        start=start,
    )
    alone, ours = found.data["programs"]
    assert (alone["seconds_to_first_token"], ours["seconds_to_first_token"]) == (1, 4)
    assert ours["seconds_runs"] == [3.0, 8.0, 4.0]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    cache = 24 * cache_bytes_per_token(loaded.model.config)  # 3 + 16 tokens, padded
    assert ours["weight_and_cache_bytes"] == weights + cache
    assert ours["peak_ratio"] == 1_000_000 / (weights + cache)
    words, shown = seen[1]
    assert words[1:5] == ("-m", "haiku_mqa", "generate", "--model")
    assert shown == 3  # bytes of the prompt, which is printed first
    assert any("tiny: transformers is not run" in note for note in found.notes)
    json.dumps(found.to_dict())


def test_start_is_timed_to_what_comes_behind_the_prompt():
    program = (
        "import sys, time; print('To be', end='', flush=True); time.sleep(0.3); "
        "print(' or', flush=True); sys.stdin.read()"
    )
    started = start_once([sys.executable, "-c", program], len("To be"))
    assert started.seconds > 0.3
    assert started.peak_bytes is None or started.peak_bytes > 1_000_000


@pytest.mark.parametrize("program", ["exit('no token')", "print('To', end='')"])
def test_start_that_comes_to_no_token_is_told(program):
    with pytest.raises(ValueError, match=r"failed: (no token|it said nothing)"):
        start_once([sys.executable, "-c", program], 5)


def test_peak_memory_of_this_process_is_more_than_jax_needs():
    peak = peak_memory()
    assert peak is None or peak > 50_000_000
    assert peak_memory("no-such-process") is None


# --- Peers in processes of their own ------------------------------------------------


def test_peer_that_cannot_be_started_is_a_line_that_says_why(model, params, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"")
    with Peers("no-such-python") as peers:
        peers.add_llama_cpp(None, context=8)
        peers.add_llama_cpp(file, context=8)
        peers.add_transformers(build(SHAPE_WITHOUT_GATE), {})
    assert not peers.programs
    assert peers.absent[0] == "llama.cpp is not run: no GGUF file is given (--gguf)"
    assert peers.absent[1].startswith("llama.cpp is not run: [Errno 2] No such file")
    assert peers.absent[2].endswith("its Llama has no other gated than its own")


SHAPE_WITHOUT_GATE = DecoderConfig(
    vocab_size=8, num_layers=1, num_heads=1, d_model=4, d_ff=4, gated=False
)


def test_python_that_lacks_torch_is_told_once_and_writes_no_weights(
    model, params, monkeypatch
):
    monkeypatch.setattr("haiku_mqa.bench.peers._NEEDED", ("no_such_library",))
    with Peers(None) as peers:
        for name in ("a", "b"):
            assert peers.write_weights(model, params, name) is None
        assert not peers.programs
    [line] = peers.absent
    assert "no_such_library not installed (pip install 'haiku-mqa[parity]')" in line


def test_script_answers_line_by_line_until_it_ends(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nprint('{\"name\": \"' + sys.argv[1] + '\"}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if line == 'end\\n': sys.exit('it is over')\n"
        "    print('{\"said\": ' + line.strip() + '}', flush=True)\n"
    )
    process = Answering(sys.executable, script, ["me"])
    try:
        assert process.greeting == {"name": "me"}
        assert process.ask("3") == {"said": 3}
        with pytest.raises(ValueError, match="it is over"):
            process.ask("end")
    finally:
        process.close()


@pytest.mark.parity
def test_transformers_in_a_process_of_its_own_says_the_same(model, params):
    from haiku_mqa import bench

    with Peers(None) as peers:
        peers.add_transformers(model, params, ["float32"])
        assert not peers.absent
        [peer] = peers.programs
        prompts = [[1, 2, 3], [7, 8, 9]]
        theirs = peer.run_rows(prompts, 6)
        assert theirs.tokens == bench.Ours(model, params).run_rows(prompts, 6).tokens
        assert "transformers" in peer.name


@pytest.mark.parity
def test_transformers_starts_from_the_same_weights(tmp_path):
    path = str(write_tiny_gguf(tmp_path / "tiny.gguf"))
    found = startup.run_startup(
        [(path, load_pretrained(path))], prompt="to be", repeats=1
    )
    _, ours, theirs = found.data["programs"]
    assert theirs["program"] == "transformers, float32"
    assert theirs["seconds_to_first_token"] > 0
    assert theirs["weight_and_cache_bytes"] == ours["weight_and_cache_bytes"]
