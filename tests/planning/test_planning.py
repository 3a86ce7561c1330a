"""A plan tells what comes: bytes, traffic, and the published figures of others."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import haiku_mqa as hm
from haiku_mqa.planning import (
    DEVICES,
    PRESETS,
    Stage,
    compiled_work,
    held,
    largest_batch,
    longest_context,
    make_plan,
    traffic_of,
)
from haiku_mqa.planning.compiled import _of_model
from haiku_mqa.planning.memory import on_one
from haiku_mqa.sharding import make_mesh, shard
from haiku_mqa.training import OptimizerConfig, init_train_state

SMALL = hm.DecoderConfig(
    vocab_size=64,
    num_layers=4,
    num_heads=8,
    num_kv_heads=1,
    d_model=32,
    d_ff=64,
    max_length=32,
)
MESHES = ("data=8", "tensor=8", "data=2,fsdp=2,tensor=2")

every_mesh = pytest.mark.parametrize("mesh", MESHES)


# --- What is held -----------------------------------------------------------------


def bytes_on_first(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@every_mesh
def test_bytes_are_those_that_arrays_have(mesh):
    model = shard(hm.build(SMALL), mesh)
    rng = jax.random.key(0)
    first = model.laid_out(lambda r: init_train_state(OptimizerConfig(), model.init(r)))
    found = held(SMALL, mesh, batch=8, context=16)
    assert found.params == bytes_on_first(model.init(rng))
    assert found.training == bytes_on_first(first(rng))
    assert found.cache == bytes_on_first(model.init_cache(8, 16))


@every_mesh
def test_bytes_are_those_that_the_compiler_counts(mesh):
    kept = held(SMALL, mesh, batch=8, context=16)
    work = compiled_work(SMALL, mesh, "decode", batch=8, context=16)
    tokens = 8 * 4 // 2  # at most: of each row one
    assert (
        kept.params + kept.cache
        <= work.arguments
        <= kept.params + kept.cache + 2 * tokens
    )


@pytest.mark.parametrize("split", ["auto", "heads", "rows"])
def test_longest_context_and_largest_batch_fill_the_room(split):
    room, mesh = 100_000, "data=2,tensor=4"
    options = {"cache_split": split}
    context = longest_context(SMALL, mesh, batch=8, room=room, **options)
    taken = [
        held(SMALL, mesh, batch=8, context=n, **options) for n in (context, context + 1)
    ]
    assert taken[0].cache <= room < taken[1].cache
    rows = largest_batch(SMALL, mesh, context=16, room=room, **options)
    taken = [
        held(SMALL, mesh, batch=n, context=16, **options) for n in (rows, rows + 8)
    ]
    assert taken[0].cache <= room < taken[1].cache


def test_nothing_fits_where_there_is_no_room():
    options = {"room": -1.0}
    assert longest_context(SMALL, "data=1", batch=8, **options) == 0
    assert largest_batch(SMALL, "data=1", context=8, **options) == 0


# Pope et al. 2022, table 1: PaLM 540B on 64 chips of 32 GiB, three tenths of whose
# memory are for the cache. Heads were padded to 64; multi-head ones are half as wide.
PADDED = dataclasses.replace(PRESETS["palm-540b"], num_heads=64)
MULTI_HEAD = dataclasses.replace(PADDED, num_kv_heads=64, key_size=128, value_size=128)


@pytest.mark.parametrize(
    ("config", "split", "batch", "published"),
    [
        (MULTI_HEAD, "heads", 128, 1320),
        (PADDED, "heads", 128, 660),
        (PADDED, "rows", 128, 43_000),
        (MULTI_HEAD, "heads", 512, 330),
        (PADDED, "heads", 512, 165),
        (PADDED, "rows", 512, 10_700),
    ],
)
def test_longest_contexts_are_those_that_were_published(
    config, split, batch, published
):
    room = 0.3 * DEVICES["tpu-v4"].memory
    found = longest_context(
        config, "tensor=64", batch=batch, room=room, cache_split=split
    )
    assert found == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.74),
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.6),
        ("falcon-7b", 6.92),
        ("palm-540b", 540.3),
    ],
)
def test_presets_have_the_sizes_of_their_papers(name, billions):
    shapes = hm.build(PRESETS[name]).param_shapes
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert total / 1e9 == pytest.approx(billions, rel=0.005)


# --- What is sent -----------------------------------------------------------------


def text_of(function, *specs):
    mesh = make_mesh("data=8")
    shapes = [
        jax.ShapeDtypeStruct(
            (64, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )
        for spec in specs
    ]
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(function, out_shardings=whole).lower(*shapes).compile().as_text()


def test_sum_over_devices_sends_nearly_twice_its_bytes():
    sent = traffic_of(text_of(lambda x: x.sum(0), ("data",))).sent
    assert sent == {"all-reduce": 2 * 7 / 8 * 128 * 4}


def test_gather_sends_what_others_lack():
    sent = traffic_of(text_of(lambda x: x * 2, ("data",))).sent
    assert sent == {"all-gather": 7 / 8 * 64 * 128 * 4}


def test_what_stands_in_a_loop_counts_as_often_as_it_runs():
    def looped(x):
        def body(total, _):
            return jnp.sin(total) + jnp.sin(x + total[0]).sum(0), None

        return jax.lax.scan(body, jnp.zeros(128), None, length=5)[0]

    sent = traffic_of(text_of(looped, ("data",))).sent
    assert sent["all-reduce"] == 5 * 2 * 7 / 8 * 128 * 4


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2},{4,6},{1,3},{5,7}}", 2),
        ("[4,2]<=[2,2,2]T(0,2,1)", 2),
        ("[1,8]<=[8]", 8),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", 8),
        ("mesh['a'=2,'b'=2,'c'=2], device_ids=([2,4]T(1,0)) {'a','c'}", 4),
        ("mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_groups_are_read_however_they_are_written(groups, size):
    line = f"%g = f32[8]{{0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}"
    text = "ENTRY %main (x: f32[1]) -> f32[8] {\n" + line + "\n}"
    assert traffic_of(text).total == 32 * (size - 1) / size


def test_groups_written_in_another_way_are_no_silent_zero():
    text = "ENTRY %main (x: f32[1]) -> f32[8] {\n"
    text += "%g = f32[8]{0} all-gather(%x), replica_groups=v9, dimensions={0}\n}"
    with pytest.raises(ValueError, match="replica_groups are written in a way"):
        traffic_of(text)


def test_one_device_sends_nothing():
    work = compiled_work(SMALL, "data=1", "train", batch=8, context=8)
    assert work.traffic.total == 0


def test_data_parallel_training_sends_each_gradient_once():
    config = dataclasses.replace(SMALL, tie_embeddings=False)
    work = compiled_work(config, "data=8", "train", batch=8, context=8)
    shapes = jax.tree.leaves(hm.build(config).param_shapes)
    gradients = 4 * sum(math.prod(leaf.shape) for leaf in shapes)
    assert work.traffic.sent["all-reduce"] == pytest.approx(
        2 * 7 / 8 * gradients, rel=0.01
    )


@pytest.mark.parametrize(
    ("stage", "windows"), [("train", None), ("decode", (4, None) * 3 + (4,))]
)
def test_more_layers_need_what_few_tell(stage, windows):
    mesh = "data=2,fsdp=2,tensor=2"
    config = dataclasses.replace(SMALL, num_layers=7, sliding_window=windows)
    found = compiled_work(config, mesh, stage, batch=8, context=16, all_layers=False)
    model = shard(hm.build(config), mesh)
    whole = _of_model(model, stage, 8, 16, OptimizerConfig())
    assert found.arguments == pytest.approx(whole.arguments, rel=0.01)
    assert found.traffic.total == pytest.approx(whole.traffic.total, rel=0.05)
    assert found.temporaries == pytest.approx(whole.temporaries, rel=0.05)
    assert found.held == pytest.approx(whole.held, rel=0.05)


def test_training_keeps_of_each_layer_what_it_is_given_and_not_what_it_computes():
    rows, tokens = 8, 128

    def temporaries(num_layers):
        config = dataclasses.replace(
            SMALL, num_layers=num_layers, d_ff=512, max_length=tokens
        )
        work = compiled_work(config, "data=1", "train", batch=rows, context=tokens)
        return work.temporaries

    hidden = rows * tokens * 512 * 4  # bytes, of which a gated layer computes several
    assert temporaries(6) - temporaries(4) < 2 * hidden


def test_what_is_held_is_what_the_program_of_a_step_needs():
    model = shard(hm.build(dataclasses.replace(SMALL, num_layers=1)), "data=1")
    cache = model.init_cache(8, 16)
    tokens = jnp.zeros((8, 1), jnp.int32)

    def read(params, tokens, cache):
        out = model.apply(params, None, tokens, cache=cache)
        return out.logits, out.cache

    step = jax.jit(read, donate_argnums=2)
    memory = step.lower(model.param_shapes, tokens, cache).compile().memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert results >= 8 * SMALL.vocab_size * 4  # logits lie in no argument's place
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + results
    plan = make_plan(
        model.config, "data=1", DEVICES["h100"], batch=8, context=16, stages=("decode",)
    )
    assert plan.stages[0].held == pytest.approx(needed, rel=0.05)


# --- The plan ---------------------------------------------------------------------


def test_slowest_of_three_binds():
    stage = Stage("train", 8, 1.0, 0.0, compute=3.0, memory=2.0, network=1.0)
    assert (stage.binds, stage.seconds) == ("compute", 3.0)
    other = dataclasses.replace(stage, network=4.0)
    assert (other.binds, other.tokens_per_second) == ("network", 2.0)


def test_decode_of_few_rows_is_bound_by_memory_and_prefill_by_compute():
    config = dataclasses.replace(
        PRESETS["llama-3-8b"], num_layers=2, vocab_size=512, d_ff=1024
    )
    plan = make_plan(
        config, "data=1", DEVICES["h100"], batch=1, context=1024,
        stages=("prefill", "decode"),
    )  # fmt: skip
    assert [stage.binds for stage in plan.stages] == ["compute", "memory"]
    assert all(plan.fits(stage) for stage in plan.stages)
    assert plan.to_dict()["stages"][0]["name"] == "prefill"


def test_bytes_are_counted_whatever_the_dtype():
    tree = {"a": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)}
    where = {"a": NamedSharding(make_mesh("data=8"), PartitionSpec("data"))}
    assert on_one(tree, where) == 8


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="unknown stage 'trian': did you mean 'train'"):
        compiled_work(SMALL, "data=1", "trian", batch=1, context=8)
