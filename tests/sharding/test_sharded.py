"""A decoder over several devices is the decoder: every number but for rounding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import haiku_mqa as hm
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
MESHES = (
    "data=8",
    "fsdp=8",
    "tensor=8",
    "data=2,tensor=4",
    "fsdp=4,tensor=2",
    "data=2,fsdp=2,tensor=2",
)
# With a large eps, so that a gradient that is rounding alone makes no step of its own.
OPTIMIZER = OptimizerConfig(schedule="constant", warmup_steps=0, eps=1e-3)

KINDS = [(1, True), (2, False), (8, True)]  # key/value heads, tied or not
# One key/value head on every mesh, since that is the hard one; the others on two.
PAIRS = [(mesh, KINDS[0]) for mesh in MESHES]
PAIRS += [(mesh, kind) for mesh in MESHES[3:5] for kind in KINDS[1:]]

every_pair = pytest.mark.parametrize(
    ("mesh", "kind"), PAIRS, ids=[f"{mesh} {kind[0]} heads" for mesh, kind in PAIRS]
)


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


# --- The same numbers -------------------------------------------------------------


@every_pair
def test_parameters_are_drawn_to_the_same_bits(mesh, kind):
    rng = jax.random.key(3)
    drawn = jax.jit(plain(*kind).init)(rng)
    assert largest(sharded(mesh, *kind).init(rng), drawn) == 0


@every_pair
def test_logits_are_the_same(mesh, kind):
    model, over = plain(*kind), sharded(mesh, *kind)
    params, tokens = model.init(jax.random.key(0)), batch_of(1).tokens
    expected = model.apply(params, None, tokens).logits
    apply = jax.jit(lambda params, tokens: over.apply(params, None, tokens).logits)
    assert largest(apply(over.put(params), tokens), expected) < SAME


@every_pair
def test_steps_of_training_are_the_same(mesh, kind):
    model, over = plain(*kind), sharded(mesh, *kind)
    rng = jax.random.key(0)
    state = init_train_state(OPTIMIZER, model.init(rng))
    first = over.laid_out(lambda rng: init_train_state(OPTIMIZER, over.init(rng)))
    other = first(rng)
    where = jax.tree.map(lambda leaf: leaf.sharding, other)  # before it is donated
    step = jax.jit(make_train_step(model, OPTIMIZER))
    other_step = jax.jit(make_train_step(over, OPTIMIZER), donate_argnums=0)
    for seed in range(2):
        batch = batch_of(seed)
        state, metrics = step(state, batch, None)
        other, other_metrics = other_step(other, over.put_batch(batch), None)
        assert abs(metrics.loss - other_metrics.loss) < SAME
        assert abs(metrics.grad_norm - other_metrics.grad_norm) < SAME
    assert largest(other.params, state.params) < SAME
    stayed = jax.tree.map(
        lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), other, where
    )
    assert all(jax.tree.leaves(stayed))


@every_pair
@pytest.mark.parametrize("rows", [8, 3])
def test_generated_tokens_are_the_same(mesh, kind, rows):
    model, over = plain(*kind), sharded(mesh, *kind)
    params = model.init(jax.random.key(0))
    prompts = [list(range(1, 2 + row)) for row in range(rows)]
    expected = hm.generate(model, params, prompts, max_new_tokens=6)
    given = hm.generate(over, over.put(params), prompts, max_new_tokens=6)
    assert given.tokens == expected.tokens


@pytest.mark.parametrize(
    ("mesh", "dtype"), [(MESHES[2], None), (MESHES[3], "int8"), (MESHES[5], "int8")]
)
def test_generated_tokens_of_int8_are_the_same(mesh, dtype):
    model, over = plain(), sharded(mesh)
    params = quantize_params(model, model.init(jax.random.key(0)))
    prompts = [[1, 2, 3]] * 8
    ways = ((model, params), (over, over.put(params)))
    tokens = [
        hm.generate(m, p, prompts, max_new_tokens=6, cache_dtype=dtype).tokens
        for m, p in ways
    ]
    assert tokens[0] == tokens[1]


@given(pair=st.sampled_from(PAIRS[3:]), seed=st.integers(0, 2**16))
@settings(max_examples=20)
def test_any_gradient_is_the_same(pair, seed):
    mesh, kind = pair
    step, other_step, state, other = gradients(mesh, kind)
    batch = batch_of(seed)
    over = sharded(mesh, *kind)
    assert largest(other_step(other, over.put_batch(batch)), step(state, batch)) < SAME


@functools.cache
def gradients(mesh, kind):
    from haiku_mqa.training import make_loss

    model, over = plain(*kind), sharded(mesh, *kind)
    params = model.init(jax.random.key(0))

    def gradient(of):
        loss = make_loss(of)
        return jax.jit(jax.grad(lambda p, batch: loss(p, batch, None).mean))

    return gradient(model), gradient(over), params, over.put(params)


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
