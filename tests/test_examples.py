"""What holds for every kind of decoder: each test runs over the table of examples."""

from __future__ import annotations

import dataclasses
import functools
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import config as config_module
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Model
from tests.models import (
    BATCH,
    EXAMPLES,
    FLOAT32,
    LENGTH,
    drawn_params,
    example,
    example_logits,
    example_params,
    example_tokens,
)

# How far two ways to compute the same thing may be apart, by what is computed in.
SAME = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}
BFLOAT16 = 0.1  # bfloat16 against float32
BFLOAT16_KL = 1e-3  # nats per token
REMAT = 1e-6

every_example = pytest.mark.parametrize("name", EXAMPLES)


def test_examples_use_every_choice_of_every_named_option():
    hints = typing.get_type_hints(DecoderConfig)
    choices = {
        field: set(typing.get_args(hint))
        for field, hint in hints.items()
        if typing.get_origin(hint) is typing.Literal
    }
    used = {
        field: {getattr(config, field) for config in EXAMPLES.values()}
        for field in choices
    }
    assert len(choices) == 8
    assert used == choices


def test_examples_use_every_activation_gated_and_plain():
    used = {(config.activation, config.gated) for config in EXAMPLES.values()}
    activations = typing.get_args(config_module.Activation)
    assert used == {(name, gated) for name in activations for gated in (True, False)}


def test_examples_use_every_rope_scaling():
    used = {
        type(scaling)
        for config in EXAMPLES.values()
        for _, scaling in filter(None, config.rotaries)
    }
    assert used == {type(None), *typing.get_args(config_module.RopeScaling)}


def test_examples_use_windows_of_one_size_and_of_one_for_each_layer():
    used = {type(config.sliding_window) for config in EXAMPLES.values()}
    assert used == {type(None), int, tuple}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DecoderConfig)])
def test_examples_vary_every_field(field):
    if field in ("vocab_size", "num_layers", "d_ff"):
        return  # any value is as good as another
    assert any(
        getattr(config, field) != _default(config, field)
        for config in EXAMPLES.values()
    )


def _default(config: DecoderConfig, field: str) -> object:
    follows = {
        "num_heads": 4,
        "d_model": 32,
        "key_size": config.d_model // config.num_heads,
        "value_size": config.key_size,
    }
    defaults = {f.name: f.default for f in dataclasses.fields(DecoderConfig)}
    return follows.get(field, defaults[field])


@every_example
def test_init_makes_the_parameters_that_param_shapes_tells(name):
    model = example(name)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert params == model.param_shapes
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
    assert dtypes == {model.config.param_dtype}


@every_example
def test_apply_returns_float32_logits_for_each_token(name):
    logits = example_logits(name)
    assert logits.shape == (BATCH, LENGTH, EXAMPLES[name].vocab_size)
    assert logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all())


@every_example
def test_apply_is_the_same_compiled_and_eager(name):
    config = EXAMPLES[name]
    eager = example(name).apply(example_params(name), None, example_tokens(name))
    np.testing.assert_allclose(
        eager.logits, example_logits(name), atol=SAME[config.dtype]
    )


@every_example
def test_apply_maps_over_an_ensemble_and_over_rows_as_if_they_were_a_batch(name):
    model, tokens = example(name), example_tokens(name)
    members = [example_params(name), drawn_params(model, seed=1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    def read(params, row):
        return model.apply(params, None, row[None]).logits[0]

    rows = jax.vmap(read, in_axes=(None, 0))
    logits = jax.jit(jax.vmap(rows, in_axes=(0, None)))(stacked, tokens)
    assert not np.allclose(logits[0], logits[1], atol=0.1)
    np.testing.assert_allclose(
        logits[0], example_logits(name), atol=SAME[model.config.dtype]
    )


@pytest.mark.parametrize("name", FLOAT32)
def test_bfloat16_computing_stays_near_float32(name):
    wide = example_logits(name)
    model = Model(dataclasses.replace(EXAMPLES[name], dtype="bfloat16"))
    forward = jax.jit(lambda params, ids: model.apply(params, None, ids).logits)
    narrow = forward(example_params(name), example_tokens(name))
    np.testing.assert_allclose(narrow, wide, atol=BFLOAT16)
    log_p, log_q = jax.nn.log_softmax(wide), jax.nn.log_softmax(narrow)
    divergence = (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert float(divergence) < BFLOAT16_KL


@every_example
def test_call_promotes_no_rank_in_silence(name):
    with jax.numpy_rank_promotion("raise"):
        _trace_every_path(example(name))


@every_example
def test_call_promotes_no_dtype_in_silence(name):
    with jax.numpy_dtype_promotion("strict"):
        _trace_every_path(example(name))


def _trace_every_path(model: Model) -> None:
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    real = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.bool_)
    cache = jax.eval_shape(lambda: model.init_cache(BATCH, 9))

    def call(params, rng, tokens, **arguments):
        return model.apply(params, rng, tokens, is_training=True, **arguments).logits

    params, rng = model.param_shapes, jax.eval_shape(lambda: jax.random.key(0))
    for arguments in (
        {},
        {"mask": real, "cache": cache},
        {"segment_ids": ids, "cache": cache, "logits_at": ids},
        {"positions": ids},
    ):
        jax.eval_shape(call, params, rng, ids, **arguments)


@functools.lru_cache(maxsize=64)
def _gradients(name: str, remat: bool) -> dict[str, dict[str, jax.Array]]:
    model = example(name)

    def forward(params, tokens):
        return model.apply(params, None, tokens).logits

    def loss(params, tokens):
        logits = (jax.checkpoint(forward) if remat else forward)(params, tokens)
        weights = np.random.default_rng(0).standard_normal(logits.shape)
        return (logits * jnp.asarray(weights, logits.dtype)).mean()

    return jax.jit(jax.grad(loss))(example_params(name), example_tokens(name))


def _cannot_matter(config: DecoderConfig, module: str, name: str) -> bool:
    """A key bias adds the same to every logit of a query, unless something bends it."""
    bent = config.position_embedding == "rotary" or config.attn_logit_softcap
    return module.endswith("attention/key") and name == "b" and not bent


@every_example
def test_gradients_are_finite_and_reach_every_parameter(name):
    config = EXAMPLES[name]
    for module, leaves in _gradients(name, remat=False).items():
        for leaf, gradient in leaves.items():
            assert bool(jnp.isfinite(gradient).all()), f"{module}/{leaf}"
            if not _cannot_matter(config, module, leaf):
                assert float(jnp.abs(gradient).max()) > 1e-6, f"{module}/{leaf}"


@pytest.mark.parametrize("name", ["classic", "capped", "parallel"])
def test_gradients_are_the_same_with_rematerialisation(name):
    chex.assert_trees_all_close(
        _gradients(name, remat=True), _gradients(name, remat=False), atol=REMAT
    )


@every_example
def test_decoding_is_traced_once_donates_its_cache_and_equals_the_full_call(name):
    model, params, tokens = example(name), example_params(name), example_tokens(name)
    chex.clear_trace_counter()

    @functools.partial(jax.jit, donate_argnums=2)
    @chex.assert_max_traces(n=1)
    def step(params, token, cache):
        out = model.apply(params, None, token, cache=cache)
        return out.logits, out.cache

    cache, logits = model.init_cache(BATCH, LENGTH + 2), []
    for place in range(LENGTH):
        given = cache
        new, cache = step(params, tokens[:, place : place + 1], given)
        logits.append(new)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.layers))
    np.testing.assert_allclose(
        jnp.concatenate(logits, axis=1),
        example_logits(name),
        atol=SAME[model.config.dtype],
    )
    assert cache.lengths.tolist() == [LENGTH] * BATCH
