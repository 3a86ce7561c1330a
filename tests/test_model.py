from __future__ import annotations

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import Model, build
from tests.models import (
    EXAMPLES,
    example,
    example_logits,
    example_params,
    example_tokens,
)

SAME = 1e-5
DROPPED_SHARE = 0.02  # about five standard errors of what the test counts
NAME = "multi_query"


@functools.cache
def _dropping(**rates: float):
    """Returns a compiled call of the dropout example, at other rates."""
    config = EXAMPLES["dropout"]
    none = dict.fromkeys(
        ["embedding_dropout", "attention_dropout", "residual_dropout"], 0.0
    )
    model = Model(dataclasses.replace(config, **{**none, **rates}) if rates else config)

    @functools.partial(jax.jit, static_argnames=("is_training", "return_attention"))
    def forward(params, rng, tokens, is_training, return_attention=False):
        return model.apply(
            params,
            rng,
            tokens,
            is_training=is_training,
            return_attention=return_attention,
        )

    return functools.partial(forward, example_params("dropout"))


def _noisy(seed: int | None, is_training: bool = True, **rates: float):
    rng = None if seed is None else jax.random.key(seed)
    return _dropping(**rates)(rng, example_tokens("dropout"), is_training).logits


def test_models_of_equal_configs_are_equal_and_hash_alike():
    first, second = build(EXAMPLES[NAME]), build(dataclasses.replace(EXAMPLES[NAME]))
    assert first == second
    assert hash(first) == hash(second)
    assert first != build(EXAMPLES["grouped"])


def test_models_of_equal_configs_share_one_compiled_program():
    @functools.partial(jax.jit, static_argnames="model")
    def forward(model, params, tokens):
        return model.apply(params, None, tokens).logits

    for _ in range(2):
        model = build(dataclasses.replace(EXAMPLES[NAME]))
        forward(model, example_params(NAME), example_tokens(NAME))
    assert forward._cache_size() == 1


def test_model_survives_pickle():
    assert pickle.loads(pickle.dumps(example(NAME))) == example(NAME)


@pytest.mark.parametrize("config", [None, {"vocab_size": 3}, EXAMPLES[NAME].to_dict()])
def test_build_refuses_what_is_no_config(config):
    with pytest.raises(ValueError, match="config must be a DecoderConfig, got"):
        build(config)


def test_init_depends_on_its_rng_and_on_nothing_else():
    model = Model(dataclasses.replace(EXAMPLES[NAME], num_layers=1))
    init = jax.jit(model.init)
    first = init(jax.random.key(0))
    for again in (
        init(jax.random.key(0)),
        init(jax.random.key(0), example_tokens(NAME)),
        init(jax.random.PRNGKey(0)),
    ):
        jax.tree.map(np.testing.assert_array_equal, again, first)
    other = init(jax.random.key(1))
    embeddings = [params["decoder_lm/embed"]["embeddings"] for params in (first, other)]
    assert not np.allclose(*embeddings)


@pytest.mark.parametrize("name", ["classic", "capped"])
def test_fresh_model_knows_nothing_and_says_so(name):
    """Logits of fresh parameters are of about one: a loss of about ln V."""
    model, tokens = example(name), example_tokens(name)
    params = jax.jit(model.init)(jax.random.key(0))
    logits = jax.jit(model.apply)(params, None, tokens).logits
    assert 0.2 < float(logits.std()) < 2


def test_param_shapes_are_told_without_making_parameters():
    spec = example(NAME).param_shapes["decoder_lm/embed"]["embeddings"]
    assert (spec.shape, spec.dtype) == ((29, 32), jnp.float32)
    assert isinstance(spec, jax.ShapeDtypeStruct)


def test_apply_takes_numpy_arrays_of_any_integer_dtype():
    tokens = np.asarray(example_tokens(NAME), np.uint8)
    params = jax.tree.map(np.asarray, example_params(NAME))
    logits = example(NAME).apply(params, None, tokens).logits
    np.testing.assert_allclose(logits, example_logits(NAME), atol=SAME)


def test_apply_does_not_touch_what_it_is_given():
    params, tokens = example_params(NAME), example_tokens(NAME)
    before = jax.tree.map(np.array, (params, tokens))
    example(NAME).apply(params, None, tokens)
    jax.tree.map(np.testing.assert_array_equal, (params, tokens), before)


def test_dropout_acts_only_while_training():
    calm = _noisy(None, is_training=False)
    np.testing.assert_array_equal(_noisy(0, is_training=False), calm)
    np.testing.assert_allclose(calm, example_logits("dropout"), atol=SAME)
    assert not np.allclose(_noisy(0), calm, atol=1e-2)


def test_dropout_depends_on_the_rng_and_on_nothing_else():
    np.testing.assert_array_equal(_noisy(0), _noisy(0))
    assert not np.allclose(_noisy(0), _noisy(1), atol=1e-2)


@pytest.mark.parametrize("part", ["embedding", "attention", "residual"])
def test_dropout_of_each_part_acts_alone(part):
    rates = {f"{part}_dropout": 0.3}
    calm = _noisy(None, is_training=False)
    assert not np.allclose(_noisy(0, **rates), calm, atol=1e-2)
    np.testing.assert_allclose(_noisy(0, is_training=False, **rates), calm, atol=SAME)


def test_dropout_of_attention_drops_its_share_of_the_weights():
    tokens = jnp.tile(example_tokens("dropout"), (20, 2))  # [40, 14]
    forward = _dropping(attention_dropout=0.3)
    attention = forward(jax.random.key(0), tokens, True, True).attention
    past = np.tri(tokens.shape[1], dtype=bool)
    for weights in attention:
        assert abs(float((weights[..., past] == 0).mean()) - 0.3) < DROPPED_SHARE


def test_dropout_uses_no_key_twice():
    with jax.debug_key_reuse(True):
        _dropping.__wrapped__()(jax.random.key(3), example_tokens("dropout"), True)


def test_training_without_dropout_needs_no_rng_and_changes_nothing():
    out = example(NAME).apply(
        example_params(NAME), None, example_tokens(NAME), is_training=True
    )
    np.testing.assert_allclose(out.logits, example_logits(NAME), atol=SAME)
