from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.training import (
    OptimizerConfig,
    clip_by_global_norm,
    decay_mask,
    learning_rate_at,
    make_optimizer,
)
from tests.models import EXAMPLES, example, example_params

SAME = 1e-6  # relative
NANOGPT = OptimizerConfig(
    learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=100, total_steps=2000
)
WSD = dataclasses.replace(NANOGPT, schedule="wsd", decay_steps=400)
CONSTANT = dataclasses.replace(NANOGPT, schedule="constant")

# Small programs that run once: it is their compilation that takes time.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def nanogpt_rate(step: int) -> float:
    """nanoGPT's get_lr, with the numbers of its recipe for a CPU."""
    if step < 100:
        return 1e-3 * (step + 1) / (100 + 1)
    if step > 2000:
        return 1e-4
    ratio = (step - 100) / (2000 - 100)
    return 1e-4 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (1e-3 - 1e-4)


# --- Schedules ------------------------------------------------------------------------


@given(step=st.integers(0, 10_000))
def test_cosine_schedule_is_that_of_nanogpt(step):
    np.testing.assert_allclose(
        learning_rate_at(NANOGPT, step), nanogpt_rate(step), rtol=10 * SAME
    )


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-3 / 101), (99, 1e-1 / 101), (100, 1e-3), (1050, 5.5e-4), (2000, 1e-4)],
)
def test_cosine_schedule_has_the_published_landmarks(step, rate):
    np.testing.assert_allclose(learning_rate_at(NANOGPT, step), rate, rtol=SAME)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-3 / 101), (100, 1e-3), (1600, 1e-3), (1700, 5.5e-4), (2000, 1e-4)],
)
def test_wsd_schedule_is_stable_and_then_decays_by_one_minus_the_root(step, rate):
    np.testing.assert_allclose(learning_rate_at(WSD, step), rate, rtol=SAME)


def test_wsd_schedule_decays_in_the_last_tenth_unless_told():
    assert OptimizerConfig(schedule="wsd", total_steps=2000).decay_steps == 200


@given(step=st.integers(100, 10_000))
def test_constant_schedule_stays(step):
    np.testing.assert_allclose(learning_rate_at(CONSTANT, step), 1e-3, rtol=SAME)


@pytest.mark.parametrize("config", [NANOGPT, WSD, CONSTANT])
def test_schedule_of_an_array_is_that_of_each_step(config):
    steps = jnp.arange(0, 2500, 50)
    rates = jax.jit(lambda steps: learning_rate_at(config, steps))(steps)
    assert rates.dtype == jnp.float32
    each = [learning_rate_at(config, int(step)) for step in steps]
    np.testing.assert_allclose(rates, each, rtol=SAME)


@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.integers(0, 50),
    more=st.integers(1, 100),
    step=st.integers(0, 200),
)
def test_learning_rate_is_positive_and_at_most_the_highest(
    schedule, warmup, more, step
):
    config = OptimizerConfig(
        schedule=schedule, warmup_steps=warmup, total_steps=warmup + more
    )
    rate = float(learning_rate_at(config, step))
    assert 0 < rate <= config.learning_rate * (1 + SAME)


# --- The config -----------------------------------------------------------------------


@given(
    data=st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["adamw", "muon"]),
            "schedule": st.sampled_from(["cosine", "wsd", "constant"]),
            "learning_rate": st.floats(1e-4, 1.0),
            "betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
            "clip_norm": st.none() | st.floats(0.1, 10),
            "accumulate": st.integers(1, 8),
        },
    )
)
def test_config_survives_json(data):
    config = OptimizerConfig(**data)
    again = OptimizerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "moun"}, "unknown name 'moun': did you mean 'muon'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"learning_rate": 0}, "learning_rate must be a number above 0, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number .* got '1e-3'"),
        ({"min_learning_rate": 1.0}, "min_learning_rate must be at most learning_rate"),
        ({"min_learning_rate": -1}, "min_learning_rate must be a number >= 0, got -1"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number >= 0, got -1"),
        ({"warmup_steps": 2000}, "warmup_steps must be below total_steps = 2000"),
        ({"total_steps": 0}, "total_steps must be a whole number >= 1, got 0"),
        ({"total_steps": 1.5}, "total_steps must be a whole number >= 1, got 1.5"),
        ({"decay_steps": 0}, "decay_steps must be a whole number >= 1, got 0"),
        (
            {"schedule": "wsd", "decay_steps": 1901},
            "decay_steps must leave room for the warm-up: at most 1900, got 1901",
        ),
        ({"betas": (0.9,)}, r"betas must be two numbers in \[0, 1\), got \(0.9,\)"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": 0.9}, r"betas must be two numbers in \[0, 1\), got 0.9"),
        ({"eps": 0.0}, "eps must be a number above 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a number >= 0, got -0.1"),
        ({"clip_norm": 0}, "clip_norm must be a number above 0, got 0"),
        ({"accumulate": True}, "accumulate must be a whole number >= 1, got True"),
    ],
)
def test_config_refuses_what_is_not_allowed_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def test_unknown_field_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        OptimizerConfig.from_dict({"learning_rat": 1e-3})


# --- Decay ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_decay_acts_on_matrices_and_never_on_scale_offset_or_bias(name):
    shapes = example(name).param_shapes
    for module, leaves in decay_mask(shapes).items():
        for parameter, decays in leaves.items():
            # A scale per head is two-dimensional, and still no matrix.
            assert decays == (parameter not in ("scale", "offset", "b")), parameter
            assert not decays or len(shapes[module][parameter].shape) == 2, module


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_update_without_gradient_shrinks_matrices_alone(kind):
    params = example_params("multi_head")
    config = dataclasses.replace(CONSTANT, name=kind, warmup_steps=0)
    optimizer = make_optimizer(config, params)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = _jit(optimizer.update)(gradients, optimizer.init(params), params)
    for module, leaves in updates.items():
        for name, update in leaves.items():
            share = 1e-4 if name in ("w", "embeddings") else 0.0
            np.testing.assert_allclose(
                update, -share * params[module][name], rtol=SAME, atol=1e-12
            )


# --- Clipping -------------------------------------------------------------------------


@_jit
def _clipped_by_us_and_by_optax(gradients, length):
    both = clip_by_global_norm(length), optax.clip_by_global_norm(length)
    return [clip.update(gradients, clip.init(gradients))[0] for clip in both]


@given(length=st.floats(0.01, 100.0), seed=st.integers(0, 2**32 - 1))
def test_clipping_is_that_of_optax_where_all_is_finite(length, seed):
    draw = np.random.default_rng(seed)
    gradients = {"a": draw.standard_normal(3), "b": np.ones((2, 2))}
    ours, theirs = _clipped_by_us_and_by_optax(gradients, length)
    for name in gradients:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=10 * SAME)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_clipping_does_not_spread_what_is_not_finite(bad):
    clip = clip_by_global_norm(1.0)
    gradients = {"good": jnp.array([3.0, 4.0]), "bad": jnp.array([0.5, bad])}
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_array_equal(clipped["good"], gradients["good"])
    np.testing.assert_array_equal(clipped["bad"], gradients["bad"])


def test_clipping_of_no_gradient_gives_none():
    clip = clip_by_global_norm(1.0)
    gradients = {"a": jnp.zeros(3)}
    assert (clip.update(gradients, clip.init(gradients))[0]["a"] == 0).all()


# --- AdamW and Muon -------------------------------------------------------------------


def test_adamw_moves_each_number_by_the_learning_rate_at_first():
    params = {"norm": {"scale": jnp.ones(3)}}
    config = dataclasses.replace(CONSTANT, warmup_steps=0)
    optimizer = make_optimizer(config, params)
    gradients = {"norm": {"scale": jnp.array([0.1, -0.2, 0.3])}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(
        updates["norm"]["scale"], [-1e-3, 1e-3, -1e-3], rtol=10 * SAME
    )


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_rest_to_adamw():
    params = example_params("multi_head")
    config = dataclasses.replace(
        CONSTANT, warmup_steps=0, weight_decay=0.0, clip_norm=None
    )
    draw = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda x: jnp.asarray(draw.standard_normal(x.shape), x.dtype), params
    )

    def updates(name):
        optimizer = make_optimizer(dataclasses.replace(config, name=name), params)
        return _jit(optimizer.update)(gradients, optimizer.init(params), params)[0]

    adamw, muon = updates("adamw"), updates("muon")
    for module, leaves in params.items():
        for name, parameter in leaves.items():
            ours = muon[module][name]
            if name != "w" or module.endswith("unembed"):
                np.testing.assert_allclose(ours, adamw[module][name], rtol=10 * SAME)
                continue
            lengths = jnp.linalg.svd(ours, compute_uv=False)
            assert lengths.max() < 3 * lengths.min(), module
            size = math.sqrt(max(parameter.shape))
            assert 0.5 < lengths.mean() / (1e-3 * 0.2 * size) < 1.5, module
