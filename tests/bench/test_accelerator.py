"""The accelerator's table, on what is here: its words and figures, not its speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import build
from haiku_mqa.bench import Peers, accelerator, bandwidth
from haiku_mqa.bench.decode import Timing
from haiku_mqa.bench.drawn import _drawn
from haiku_mqa.bench.matmul import matmul_rate

TINY = {"preset": "tiny", "device": "cpu", "prompt_tokens": 8, "new_tokens": 3}


@pytest.fixture
def limits(monkeypatch):
    """As if memory gave 1 GB/s, and products 1 GFLOP/s."""
    monkeypatch.setattr(accelerator, "read_bandwidth", lambda size: 1e9)
    monkeypatch.setattr(accelerator, "matmul_rate", lambda size, dtype: 1e9)


class _Scripted:
    name, dtype, weight_bytes = "theirs", "bfloat16", 1000

    def run(self, prompt, new_tokens):
        return Timing(2.0, 4.0, (1,) * new_tokens)


def test_table_has_limits_and_what_each_program_makes_of_them(monkeypatch, limits):
    monkeypatch.setattr(
        Peers,
        "add_drawn_transformers",
        lambda self, *_: self.programs.append(_Scripted()),
    )
    found = accelerator.run_accelerator(**TINY, repeats=2)
    assert [row[0] for row in found.rows] == [
        *("memory", "matrix products", "decode", "decode", "prefill", "prefill"),
        "attention",
    ]
    ours, theirs = found.data["programs"]
    assert theirs["decode_tokens_per_second"] == 2 / 4
    assert theirs["decode_fraction_of_limit"] == 0.5 * 1000 / 1e9
    assert theirs["prefill_tokens_per_second"] == 8 / 2
    assert theirs["prefill_fraction_of_limit"] == found.data["prefill_flops"] / 2 / 1e9
    assert ours["weight_bytes_per_token"] == 2 * found.data["parameters"]
    assert len(ours["decode_runs"]) == len(found.data["matmul_runs"]) == 2
    assert found.rows[0][3] == "1 GB/s"
    assert found.data["attention"][0]["seconds"] > 0
    assert "cudnn is not run: it is for a GPU, and jax runs on cpu" in found.notes


def test_billion_parameters_are_one_and_share_one_head():
    model = build(accelerator.PRESETS["1b"])
    leaves = jax.tree.leaves(model.param_shapes)
    assert 1.0e9 < sum(leaf.size for leaf in leaves) < 1.1e9
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    assert model.config.num_kv_heads == 1


def test_weights_are_drawn_in_their_own_dtype():
    shape, dtype = (512, 256), jnp.dtype("bfloat16")
    drawn = _drawn(jax.random.key(0), shape, dtype)
    assert np.asarray(drawn, np.float32).std() == pytest.approx(512**-0.5, rel=0.02)
    made = jax.make_jaxpr(lambda rng: _drawn(rng, shape, dtype))
    wide = [
        variable.aval.dtype
        for equation in _equations(made(jax.random.key(0)).jaxpr)
        for variable in equation.outvars
        if variable.aval.size >= 512 * 256 and variable.aval.dtype != dtype
    ]
    # What is drawn first are bits; no number is ever wider than it ends.
    assert not [dtype for dtype in wide if jnp.issubdtype(dtype, jnp.floating)]


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", None) for x in equation.params.values()]
        for each in inner:
            if each is not None:
                yield from _equations(each)
        yield equation


@pytest.mark.parametrize("device", ["gpu", "tpu", None])
def test_accelerator_that_is_not_there_is_told(device):
    told = "device must be cpu" if device else "no accelerator is here"
    with pytest.raises(ValueError, match=told):
        accelerator.run_accelerator(device=device)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"preset": "2b"}, "preset.*'2b'.*1b"),
        ({"prompt_tokens": 4096}, "at most 4096 together.*got 4096 \\+ 3"),
    ],
)
def test_what_cannot_be_measured_is_told_before_weights_are_drawn(wrong, told):
    with pytest.raises(ValueError, match=told):
        accelerator.run_accelerator(**{**TINY, **wrong})


def test_memory_of_a_device_is_read_by_an_array_that_it_has_room_for():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 16 << 30}

    assert bandwidth._size_for(Device()) == 2 << 30
    assert bandwidth._size_for(jax.devices()[0]) == 4 << 30


def test_products_are_measured_in_the_dtype_that_is_asked_for():
    assert matmul_rate(32, passes=1, dtype="bfloat16") > 0


def test_transformers_has_no_tpu_here(limits):
    model = build(accelerator.PRESETS["tiny"])
    with Peers("no-such-python") as peers:
        peers.add_drawn_transformers(model, model.param_shapes, "tpu")
    assert peers.absent == ["transformers is not run: torch has no tpu"]


@pytest.mark.parity
def test_transformers_draws_weights_of_the_same_shape(limits):
    found = accelerator.run_accelerator(**TINY, repeats=1)
    ours, theirs = found.data["programs"]
    assert theirs["name"].startswith("transformers")
    assert theirs["weight_bytes_per_token"] == ours["weight_bytes_per_token"]
    assert theirs["decode_tokens_per_second"] > 0
