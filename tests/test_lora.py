"""Adapters change what a model says by what they hold, and by nothing else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haiku_mqa import (
    AdaptedModel,
    DecoderConfig,
    LoRA,
    build,
    generate,
    quantize_params,
)
from haiku_mqa.lora import split_adapters
from haiku_mqa.training import Batch, make_loss

SAME = 1e-5
CONFIG = DecoderConfig(
    vocab_size=31,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    d_model=16,
    d_ff=24,
    max_length=32,
    query_bias=True,
)
MODEL = build(CONFIG)
ADAPTED = AdaptedModel(CONFIG, LoRA(rank=3, alpha=6.0, targets=("query", "down")))
BASE = MODEL.init(jax.random.key(0))
TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6]])


def _drawn(seed=1):
    """Adapters that do something."""
    params = ADAPTED.add_adapters(BASE, jax.random.key(seed))
    own, adapters = split_adapters(params)
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    drawn = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), adapters)
    return {**own, **drawn}


def test_adapters_are_below_each_target_of_each_layer_and_nowhere_else():
    _, adapters = split_adapters(ADAPTED.init(jax.random.key(0)))
    assert set(adapters) == {
        f"decoder_lm/decoder/layer_{layer}/{path}/lora"
        for layer in range(2)
        for path in ("attention/query", "feed_forward/down")
    }


def test_new_adapters_change_nothing():
    params = ADAPTED.add_adapters(BASE, jax.random.key(1))
    np.testing.assert_array_equal(
        ADAPTED.apply(params, None, TOKENS).logits,
        MODEL.apply(BASE, None, TOKENS).logits,
    )


def test_an_adapted_model_is_the_plain_one_with_merged_matrices():
    params = _drawn()
    adapted = ADAPTED.apply(params, None, TOKENS).logits
    merged = MODEL.apply(ADAPTED.merged(params), None, TOKENS).logits
    np.testing.assert_allclose(adapted, merged, atol=SAME)
    assert np.abs(adapted - MODEL.apply(BASE, None, TOKENS).logits).max() > 0.1


def test_a_merged_matrix_is_w_plus_the_scaled_product():
    params = _drawn()
    path = "decoder_lm/decoder/layer_1/feed_forward/down"
    a, b = (np.asarray(params[f"{path}/lora"][name]) for name in "ab")
    wanted = np.asarray(params[path]["w"]) + 2.0 * (a @ b)
    np.testing.assert_allclose(ADAPTED.merged(params)[path]["w"], wanted, atol=SAME)


def test_text_is_generated_with_adapters_as_without_once_they_are_merged():
    params = _drawn()
    prompts = [[1, 2, 3], [4]]
    adapted = generate(ADAPTED, params, prompts, max_new_tokens=8)
    merged = generate(MODEL, ADAPTED.merged(params), prompts, max_new_tokens=8)
    assert adapted.tokens == merged.tokens
    plain = generate(MODEL, BASE, prompts, max_new_tokens=8)
    assert adapted.tokens != plain.tokens


def test_training_adapters_alone_learns_and_leaves_the_model_as_it_was():
    own, adapters = split_adapters(ADAPTED.add_adapters(BASE, jax.random.key(1)))
    optimizer = optax.adam(3e-2)

    def loss(adapters):
        logits = ADAPTED.apply({**own, **adapters}, None, TOKENS[:, :-1]).logits
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:])
        return losses.mean()

    @jax.jit
    def step(adapters, state):
        value, gradients = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(adapters, updates), state, value

    state, losses = optimizer.init(adapters), []
    for _ in range(40):
        adapters, state, value = step(adapters, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 4
    again = MODEL.apply(own, None, TOKENS).logits
    np.testing.assert_array_equal(again, MODEL.apply(BASE, None, TOKENS).logits)


def test_adapters_of_half_precision_parameters_are_added_in_float32():
    half = dataclasses.replace(CONFIG, param_dtype="bfloat16")
    adapted = AdaptedModel(half, ADAPTED.lora)
    params = adapted.init(jax.random.key(0))
    path = "decoder_lm/decoder/layer_0/attention/query"
    params[f"{path}/lora"]["b"] += 0.01
    assert adapted.merged(params)[path]["w"].dtype == jnp.bfloat16
    assert (adapted.merged(params)[path]["w"] != params[path]["w"]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be a whole number >= 1, got 0"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"targets": ()}, "got none"),
        ({"targets": ("q_proj",)}, "got 'q_proj'"),
    ],
)
def test_what_no_adapter_can_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**fields)


def test_parameters_without_adapters_are_refused_by_name():
    with pytest.raises(ValueError, match="query/lora"):
        ADAPTED.apply(BASE, None, TOKENS)


def test_matrices_in_int8_take_no_adapters():
    params = {**quantize_params(MODEL, BASE), **split_adapters(_drawn())[1]}
    with pytest.raises(ValueError, match="matrix of floating point"):
        ADAPTED.apply(params, None, TOKENS)


def test_the_loss_of_training_and_of_evaluation_see_adapters():
    params = _drawn()
    tokens = jnp.arange(24).reshape(2, 12) % MODEL.config.vocab_size
    batch = Batch(tokens[:, :-1], tokens[:, 1:], mask=None)
    adapted = make_loss(ADAPTED)(params, batch, None).mean
    plain = make_loss(MODEL)(ADAPTED.merged(params), batch, None).mean
    np.testing.assert_allclose(adapted, plain, rtol=1e-5)
    before = make_loss(MODEL)(split_adapters(params)[0], batch, None).mean
    assert abs(adapted - before) > 1e-3
