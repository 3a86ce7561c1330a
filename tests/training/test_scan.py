"""Layers in one loop: the same loss and gradients, of a program that does not grow."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, LinearScaling, Model
from haiku_mqa.training import (
    Batch,
    OptimizerConfig,
    init_train_state,
    make_loss,
    make_train_step,
)
from haiku_mqa.training._scan import repeating_layers
from tests.models import EXAMPLES, FLOAT32, drawn_params, example_params

SAME = 1e-5
BFLOAT16 = 2e-2  # relative, of a loss
ROWS, LENGTH = 3, 12
SMALL = DecoderConfig(
    vocab_size=29, num_layers=3, num_heads=2, d_model=16, d_ff=32, max_length=64
)
ALTERNATING = dataclasses.replace(
    EXAMPLES["capped"], num_layers=5, sliding_window=(3, None, 3, None, 3)
)
LEFT_OVER = "alternating, with one left over"
CONFIGS = {
    **{name: EXAMPLES[name] for name in FLOAT32 if name not in ("capped", "mixed")},
    LEFT_OVER: ALTERNATING,
    "rotary in every other layer": dataclasses.replace(
        EXAMPLES["mixed"],
        num_layers=4,
        rope_theta=(500.0, None) * 2,
        rope_scaling=(LinearScaling(factor=2.0), None) * 2,
    ),
    "one layer": dataclasses.replace(SMALL, num_layers=1),
    "three layers": SMALL,
}
REMATERIALIZED = ["grouped", "learned", LEFT_OVER]
# What brings parameters together for the loop, and their gradients apart after it.
MOVES = {"broadcast_in_dim", "reshape", "concatenate", "slice", "pad"}

# Small programs that run a few times: it is their compilation that takes time.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _batch(seed: int = 0, length: int = LENGTH, **fields) -> Batch:
    draw = np.random.default_rng(seed)
    text = draw.integers(0, SMALL.vocab_size, (ROWS, length + 1)).astype(np.int32)
    mask = draw.random((ROWS, length)) < 0.8
    return Batch(text[:, :-1], text[:, 1:], mask)._replace(**fields)


def _packed(seed: int) -> Batch:
    draw = np.random.default_rng(seed)
    segments = np.sort(draw.integers(1, 4, (ROWS, LENGTH))).astype(np.int32)
    return _batch(seed, segment_ids=segments)


@functools.cache
def _differentiated(config: DecoderConfig, **options):
    loss = make_loss(Model(config), **options)
    return _jit(jax.value_and_grad(lambda p, b, rng: loss(p, b, rng).mean))


def _agree(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=SAME)


# --- The same numbers -----------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_scanned_loss_and_gradients_are_those_of_layers_one_by_one(name, seed):
    params = drawn_params(Model(CONFIGS[name]), seed)
    batch = _packed(seed)
    expected = _differentiated(CONFIGS[name])(params, batch, None)
    scanned = _differentiated(CONFIGS[name], scan_layers=True)
    _agree(scanned(params, batch, None), expected)
    if name in REMATERIALIZED:
        scanned = _differentiated(CONFIGS[name], scan_layers=True, remat=True)
        _agree(scanned(params, batch, None), expected)


def test_scanned_gradients_have_the_paths_and_shapes_of_the_parameters():
    params = example_params("multi_head")
    scanned = _differentiated(EXAMPLES["multi_head"], scan_layers=True)
    _, gradients = scanned(params, _batch(), None)
    for gradient, leaf in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(params), strict=True
    ):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)


def test_scanned_loss_is_the_first_that_is_asked_of_a_model():
    # The shapes of its parameters are not known yet, and are worked out within.
    params = drawn_params(Model(SMALL))
    unseen = dataclasses.replace(SMALL, max_length=LENGTH)
    scanned = _differentiated(unseen, scan_layers=True)
    _agree(
        scanned(params, _batch(), None), _differentiated(SMALL)(params, _batch(), None)
    )


def test_scanned_bfloat16_is_computed_over_float32_parameters():
    losses = []
    for scan in (False, True):
        both = _differentiated(SMALL, scan_layers=scan, compute_dtype="bfloat16")
        loss, gradients = both(drawn_params(Model(SMALL)), _batch(), None)
        assert {x.dtype.name for x in jax.tree.leaves(gradients)} == {"float32"}
        losses.append(loss)
    np.testing.assert_allclose(*losses, rtol=BFLOAT16)


def test_scanned_step_is_the_step():
    config = OptimizerConfig(accumulate=3)  # a loop around the loop
    states = []
    for scan in (False, True):
        step = _jit(make_train_step(Model(SMALL), config, scan_layers=scan))
        state = init_train_state(config, drawn_params(Model(SMALL)))
        state, metrics = step(state, _batch(), None)
        assert not metrics.skipped
        states.append((metrics.loss, metrics.grad_norm, state.opt_state))
    _agree(*states)


# --- Dropout --------------------------------------------------------------------------

DROPPING = dataclasses.replace(SMALL, residual_dropout=0.5, attention_dropout=0.2)


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "rematerialized"])
def test_scanned_dropout_is_known_by_its_rng(remat):
    both = _differentiated(DROPPING, scan_layers=True, remat=remat, is_training=True)
    params = drawn_params(Model(SMALL))
    one, other = jax.random.key(1), jax.random.key(2)
    expected = both(params, _batch(), one)
    _agree(both(params, _batch(), one), expected)
    assert both(params, _batch(), other)[0] != expected[0]


def test_rematerialized_blocks_of_the_loop_drop_the_same_again():
    options = {"scan_layers": True, "is_training": True}
    params, rng = drawn_params(Model(SMALL)), jax.random.key(1)
    expected = _differentiated(DROPPING, **options)(params, _batch(), rng)
    again = _differentiated(DROPPING, remat=True, **options)(params, _batch(), rng)
    _agree(again, expected)


@pytest.mark.parametrize(
    "windows", [None, (9, 8, 9, 8, 9)], ids=["one window", "a pattern and one over"]
)
def test_each_layer_of_the_loop_drops_something_else(windows):
    config = dataclasses.replace(
        SMALL,
        num_layers=5,
        sliding_window=windows,
        residual_dropout=0.5,
        norm="layer",
        norm_placement="after",
    )
    # With one row of one token, the last offset of a branch has no gradient just
    # where it was dropped.
    token = np.array([[5]], np.int32)
    batch = Batch(token, token, np.ones((1, 1), bool))
    both = _differentiated(config, scan_layers=True, is_training=True)
    _, gradients = both(drawn_params(Model(config)), batch, jax.random.key(0))
    dropped = [
        tuple((gradients[path]["offset"] == 0).tolist())
        for path in gradients
        if path.endswith("_post_norm")
    ]
    assert all(0 < sum(offsets) < SMALL.d_model for offsets in dropped)
    assert len({*dropped}) == len(dropped) == 2 * config.num_layers


def test_scanned_dropout_without_an_rng_is_refused():
    loss = make_loss(Model(DROPPING), scan_layers=True, is_training=True)
    with pytest.raises(ValueError, match="rng must be given"):
        loss(drawn_params(Model(SMALL)), _batch(), None)


# --- The program ----------------------------------------------------------------------


def _operations(layers: int, **options) -> collections.Counter[str]:
    config = dataclasses.replace(SMALL, num_layers=layers)
    lowered = _differentiated(config, **options).lower(
        drawn_params(Model(config)), _batch(), None
    )
    return collections.Counter(re.findall(r"stablehlo\.(\w+)", lowered.as_text()))


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "rematerialized"])
def test_program_of_the_loop_computes_no_more_for_more_layers(remat):
    few, many = (
        _operations(layers, scan_layers=True, remat=remat) for layers in (4, 12)
    )
    assert {name: many[name] for name in {*many} - MOVES} == {
        name: few[name] for name in {*few} - MOVES
    }
    assert many["dot_general"] < _operations(4, remat=remat)["dot_general"]


def test_rematerialized_loop_needs_less_memory_than_layers_one_by_one():
    config = dataclasses.replace(SMALL, num_layers=8, num_heads=8)
    params = drawn_params(Model(config))

    def temporary_bytes(**options) -> int:
        loss = make_loss(Model(config), remat=True, **options)
        lowered = _jit(jax.grad(lambda p, b: loss(p, b, None).sum)).lower(
            params, _batch(length=64)
        )
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporary_bytes(scan_layers=True) < temporary_bytes() / 2


# --- Which layers can be looped over --------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "windows", "expected"),
    [
        (1, None, (1, 1)),
        (12, None, (1, 12)),
        (12, 64, (1, 12)),
        (4, (8, None, 8, None), (2, 2)),
        (5, (8, None, 8, None, 8), (2, 2)),
        (26, ((8,) * 5 + (None,)) * 4 + (8, 8), (6, 4)),
        (6, (8, 8, None, 8, 8, None), (3, 2)),
    ],
)
def test_pattern_is_the_shortest_that_layers_repeat(layers, windows, expected):
    config = dataclasses.replace(SMALL, num_layers=layers, sliding_window=windows)
    assert repeating_layers(config) == expected


def test_pattern_is_one_of_rotary_positions_too():
    six = dataclasses.replace(SMALL, num_layers=6)
    some = dataclasses.replace(six, rope_theta=(500.0, 500.0, None) * 2)
    assert repeating_layers(some) == (3, 2)
    scaling = (LinearScaling(factor=2.0), None) * 3
    assert repeating_layers(dataclasses.replace(six, rope_scaling=scaling)) == (2, 3)


@pytest.mark.parametrize(
    "windows", [(3, None), (8, None, 8), (None, None, None, 8), (1, 2, 3, 4)]
)
def test_layers_that_repeat_no_pattern_are_refused_before_any_is_run(windows):
    config = dataclasses.replace(SMALL, num_layers=len(windows), sliding_window=windows)
    with pytest.raises(ValueError, match=r"scan_layers needs .* at least twice in"):
        make_loss(Model(config), scan_layers=True)
    with pytest.raises(ValueError, match="scan_layers needs"):
        make_train_step(Model(config), OptimizerConfig(), scan_layers=True)
