"""Where a decoder over several devices has its numbers, and what it refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa.planning.collectives import traffic_of
from haiku_mqa.quantization import quantize_params
from haiku_mqa.sharding import AXES, PARAMETERS, Rule, make_mesh, mesh_sizes, shard
from haiku_mqa.sharding.rules import rule_of
from haiku_mqa.training import (
    Batch,
    OptimizerConfig,
    init_train_state,
    make_train_step,
)
from tests.models import EXAMPLES, example

SAME = 1e-5
OPTIMIZER = OptimizerConfig()


@functools.cache
def plain(kv_heads=1, tied=True, **changes):
    fields = {
        "vocab_size": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": kv_heads,
        "d_model": 32,
        "d_ff": 64,
        "max_length": 32,
        "tie_embeddings": tied,
        **changes,
    }
    return hm.build(hm.DecoderConfig(**fields))


@functools.cache
def sharded(mesh, *args):
    return shard(plain(*args), mesh)


def batch_of(seed, rows=8, length=9):
    tokens = np.random.default_rng(seed).integers(0, 64, (rows, length + 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], mask=None)


def largest(ours, theirs):
    """Returns the largest difference of two trees, in shares of what is compared."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def test_there_are_eight_devices():
    assert len(jax.devices()) >= 8


# --- The same tokens --------------------------------------------------------------

# That all numbers are the same is a law: tests/laws/test_sharding_laws.py.


@pytest.mark.parametrize("mesh", ["tensor=8", "data=2,fsdp=2,tensor=2"])
def test_generated_tokens_of_rows_that_are_not_divided_are_the_same(mesh):
    model, over = plain(), sharded(mesh)
    params = model.init(jax.random.key(0))
    prompts = [[1], [1, 2], [1, 2, 3]]
    expected = hm.generate(model, params, prompts, max_new_tokens=6)
    given = hm.generate(over, over.put(params), prompts, max_new_tokens=6)
    assert given.tokens == expected.tokens


def test_generated_tokens_of_a_cache_in_int8_are_the_same():
    model, over = plain(), sharded("data=2,tensor=4")
    params = quantize_params(model, model.init(jax.random.key(0)))
    expected, given = (
        hm.generate(m, p, [[1, 2, 3]] * 8, max_new_tokens=6, cache_dtype="int8").tokens
        for m, p in ((model, params), (over, over.put(params)))
    )
    assert given == expected


def test_steps_of_training_leave_a_state_where_it_lies():
    over = sharded("data=2,fsdp=2,tensor=2")
    first = over.laid_out(lambda rng: init_train_state(OPTIMIZER, over.init(rng)))
    state = first(jax.random.key(0))
    where = jax.tree.map(lambda leaf: leaf.sharding, state)  # before it is donated
    step = jax.jit(make_train_step(over, OPTIMIZER), donate_argnums=0)
    state, _ = step(state, over.put_batch(batch_of(0)), None)
    stayed = jax.tree.map(
        lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, where
    )
    assert all(jax.tree.leaves(stayed))


# --- What lies where --------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_parameter_has_exactly_one_rule_with_its_axes(name):
    for module, leaves in example(name).param_shapes.items():
        for leaf, shape in leaves.items():
            path = f"{module}/{leaf}".removeprefix("decoder_lm/")
            rule = rule_of(path, PARAMETERS)
            assert len(rule.axes) in (0, len(shape.shape)), path


def test_every_rule_has_a_parameter():
    paths = {
        f"{module}/{leaf}".removeprefix("decoder_lm/")
        for name in EXAMPLES
        for module, leaves in example(name).param_shapes.items()
        for leaf in leaves
    }
    with_biases = plain(1, True, gated=True, ff_bias=True).param_shapes
    paths |= {f"{m}/{leaf}" for m, leaves in with_biases.items() for leaf in leaves}
    idle = [r.pattern for r in PARAMETERS if not any(r.matches(p) for p in paths)]
    assert idle == []


def test_matrices_are_split_and_never_whole_on_a_device():
    params = sharded("fsdp=4,tensor=2", 2, True).init(jax.random.key(0))
    for module, leaves in params.items():
        for name, array in leaves.items():
            part = array.addressable_shards[0].data
            shared = 8 if name in ("w", "embeddings") else 1
            if module.endswith(("attention/linear", "norm")) and name != "w":
                shared = 1
            assert part.size * shared == array.size, f"{module}/{name}"


def test_optimizer_lies_where_parameters_do():
    over = sharded("fsdp=4,tensor=2", 2, True)
    first = over.laid_out(lambda rng: init_train_state(OPTIMIZER, over.init(rng)))
    state = first(jax.random.key(0))
    moments = state.opt_state[1][0].mu if len(state.opt_state) > 1 else None
    assert moments is not None
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, moments, state.params)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("kv_heads", "rows", "spec"),
    [
        (8, 8, (("data", "fsdp"), "tensor")),
        (1, 8, (("data", "fsdp", "tensor"), None)),
        (1, 4, (("data", "fsdp"), None)),
        (1, 3, (None, None)),
    ],
)
def test_cache_goes_by_heads_or_else_by_rows(kv_heads, rows, spec):
    cache = sharded("data=2,tensor=4", kv_heads, True).init_cache(rows, 16)
    padded = (*cache.layers[0].keys.sharding.spec, None, None)[:2]
    assert padded == spec


@pytest.mark.parametrize(
    ("kv_heads", "split", "parts"),
    [(1, "heads", 2), (1, "rows", 8), (8, "rows", 8), (8, "heads", 8)],
)
def test_cache_goes_as_it_is_told_to(kv_heads, split, parts):
    model = plain(kv_heads)
    over = shard(model, "data=2,tensor=4", cache_split=split)
    keys = over.init_cache(8, 16).layers[0].keys
    assert keys.addressable_shards[0].data.size * parts == keys.size
    params = model.init(jax.random.key(0))
    prompts = [[1, 2, 3]] * 8
    expected = hm.generate(model, params, prompts, max_new_tokens=4).tokens
    given = hm.generate(over, over.put(params), prompts, max_new_tokens=4).tokens
    assert given == expected


@pytest.mark.parametrize(
    ("kv_heads", "mesh"), [(8, "tensor=4"), (1, "data=2,tensor=4")]
)
def test_what_is_sent_to_decode_a_token_knows_nothing_of_the_past(kv_heads, mesh):
    over = sharded(mesh, kv_heads, True)
    params = over.init(jax.random.key(0))

    def read(params, tokens, cache):
        out = over.apply(params, None, tokens, cache=cache)
        return out.logits, out.cache

    def sent(room):
        cache = over.init_cache(8, room)
        tokens = jnp.zeros((8, 1), jnp.int32)
        program = jax.jit(read).lower(params, tokens, cache).compile()
        return traffic_of(program.as_text()).total

    assert sent(64) == sent(512) > 0


def test_cache_by_rows_needs_rows():
    over = shard(plain(), "data=2,tensor=4", cache_split="rows")
    with pytest.raises(ValueError, match="tensor = 8 must divide the rows of a cache"):
        over.init_cache(6, 16)
    with pytest.raises(ValueError, match="unknown cache_split 'row': did you mean"):
        shard(plain(), "data=2", cache_split="row")


def test_one_kv_head_of_many_rows_takes_each_device_its_part_of_the_cache():
    cache = sharded("tensor=8", 1, True).init_cache(8, 16)
    keys = cache.layers[0].keys
    assert keys.addressable_shards[0].data.size * 8 == keys.size


def test_rules_of_ones_own_come_first():
    own = Rule("*/feed_forward/up/w")
    model = shard(plain(), "tensor=8", [own])
    where = model.layout.params(model.param_shapes)
    assert not where["decoder_lm/decoder/layer_0/feed_forward/up"]["w"].spec
    assert where["decoder_lm/decoder/layer_0/feed_forward/down"]["w"].spec


def test_two_rules_for_one_parameter_are_refused():
    with pytest.raises(ValueError, match=r"exactly one rule must match embed/e.*none"):
        rule_of("embed/embeddings", PARAMETERS[1:])
    with pytest.raises(ValueError, match=r"got embed/embeddings, embed/\*"):
        rule_of("embed/embeddings", (*PARAMETERS, Rule("embed/*")))


# --- What is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("tensr=2", "unknown mesh axis 'tensr': did you mean 'tensor'"),
        ("tensor", "mesh must be written as data=2,tensor=4, got 'tensor'"),
        ("tensor=x", "mesh must be written as data=2,tensor=4"),
        ("tensor=2,tensor=2", "mesh names 'tensor' twice"),
        ("tensor=0", "mesh tensor must be"),
        ("data=64", r"mesh data=64 needs 64 devices, and there are \d+ \(cpu\)"),
    ],
)
def test_mesh_that_cannot_be_is_refused(mesh, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(mesh)


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        (
            {"num_heads": 6, "d_model": 36},
            "tensor=4",
            "tensor = 4 must divide num_heads, which is 6; allowed: 1, 2, 3, 6",
        ),
        ({"d_ff": 66}, "tensor=4", "tensor = 4 must divide d_ff, which is 66"),
        (
            {"d_model": 36, "num_heads": 6},
            "fsdp=8",
            "fsdp = 8 must divide d_model, which is 36",
        ),
    ],
)
def test_size_that_is_not_divided_is_refused_by_name(changes, mesh, message):
    fields = {"vocab_size": 64, "num_layers": 1, "num_heads": 8, "d_model": 32}
    config = hm.DecoderConfig(**{"d_ff": 64, **fields, **changes})
    with pytest.raises(ValueError, match=message):
        shard(hm.build(config), mesh)


def test_vocabulary_that_is_not_divided_is_whole_and_still_right():
    model = plain(1, True, vocab_size=65)
    over = shard(model, "fsdp=2,tensor=4")
    params, tokens = model.init(jax.random.key(0)), batch_of(1).tokens
    apply = jax.jit(lambda params, tokens: over.apply(params, None, tokens).logits)
    expected = model.apply(params, None, tokens).logits
    assert largest(apply(over.put(params), tokens), expected) < SAME


def test_rows_that_are_not_divided_are_refused_in_training():
    with pytest.raises(ValueError, match="data x fsdp = 8 must divide the rows"):
        sharded("data=8").put_batch(batch_of(0, rows=6))


def test_mesh_with_other_axes_is_refused():
    mesh = jax.make_mesh((2,), ("model",))
    with pytest.raises(ValueError, match="mesh must have the axes"):
        shard(plain(), mesh)


def test_sizes_are_read_in_any_order():
    assert mesh_sizes("tensor=4,data=2") == {"data": 2, "fsdp": 1, "tensor": 4}
    assert tuple(mesh_sizes("")) == AXES
    assert jnp.prod(jnp.array(list(mesh_sizes({}).values()))) == 1
