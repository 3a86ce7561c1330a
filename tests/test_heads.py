"""Converting heads changes what it says, and nothing else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import haiku_mqa as hm
from haiku_mqa.testing.subject import disturb

CLOSE = 1e-5
CONFIG = hm.DecoderConfig(
    vocab_size=31,
    num_layers=2,
    num_heads=12,
    num_kv_heads=4,
    key_size=6,
    value_size=10,
    d_model=24,
    d_ff=32,
    query_bias=True,
    key_bias=True,
    value_bias=True,
    qk_norm=True,
)
PARAMS = disturb(hm.build(CONFIG).init(jax.random.key(0)))


BY_HEAD = dataclasses.replace(CONFIG, qk_norm_span="own_head")


def logits(config, params, seed):
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 9))
    return np.asarray(hm.build(config).apply(params, None, jnp.asarray(tokens)).logits)


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


@pytest.mark.parametrize("method", ["mean", "first"])
def test_converting_to_the_same_number_is_identity(method):
    config, params = hm.convert_heads(CONFIG, PARAMS, 4, method)
    assert config == CONFIG
    assert equal(params, PARAMS)


@given(st.sampled_from([4, 12]), st.integers(0, 1000))
def test_more_heads_are_the_same_function(num_kv_heads, seed):
    config, params = hm.convert_heads(CONFIG, PARAMS, num_kv_heads)
    np.testing.assert_allclose(
        logits(config, params, seed), logits(CONFIG, PARAMS, seed), rtol=0, atol=CLOSE
    )


def test_more_heads_copy_scales_that_are_each_heads_own():
    old = disturb(hm.build(BY_HEAD).init(jax.random.key(0)))
    config, params = hm.convert_heads(BY_HEAD, old, 12)
    np.testing.assert_allclose(
        logits(config, params, 0), logits(BY_HEAD, old, 0), rtol=0, atol=CLOSE
    )
    assert equal(hm.convert_heads(config, params, 4, "first")[1], old)


@pytest.mark.parametrize("method", ["mean", "first"])
def test_more_heads_and_back_is_identity(method):
    more = hm.convert_heads(CONFIG, PARAMS, 12)
    config, back = hm.convert_heads(*more, 4, method)
    assert config == CONFIG
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), back, PARAMS
    )


def heads_of(params, part, size):
    w = params[f"decoder_lm/decoder/layer_1/attention/{part}"]["w"]
    return np.asarray(w).reshape(CONFIG.d_model, -1, size)


def test_copies_change_nothing_where_keys_are_normalised_as_one_vector():
    config = dataclasses.replace(CONFIG, qk_norm_span="all_heads")
    params = disturb(hm.build(config).init(jax.random.key(3)))
    more = hm.convert_heads(config, params, 12)
    np.testing.assert_allclose(logits(*more, 0), logits(config, params, 0), atol=1e-5)


@pytest.mark.parametrize(("part", "size"), [("key", 6), ("value", 10)])
def test_mean_pools_neighbouring_heads(part, size):
    _, params = hm.convert_heads(CONFIG, PARAMS, 2)
    old, new = heads_of(PARAMS, part, size), heads_of(params, part, size)
    np.testing.assert_allclose(new[:, 0], old[:, :2].mean(axis=1), atol=1e-7)
    np.testing.assert_allclose(new[:, 1], old[:, 2:].mean(axis=1), atol=1e-7)


def test_first_takes_the_first_of_each_group():
    _, params = hm.convert_heads(CONFIG, PARAMS, 2, "first")
    old, new = heads_of(PARAMS, "key", 6), heads_of(params, "key", 6)
    np.testing.assert_array_equal(new, old[:, [0, 2]])


def test_random_draws_new_heads_and_keeps_the_rest():
    config, params = hm.convert_heads(
        CONFIG, PARAMS, 1, "random", rng=jax.random.key(1)
    )
    _, again = hm.convert_heads(CONFIG, PARAMS, 1, "random", rng=jax.random.key(1))
    assert equal(params, again)
    _, mean = hm.convert_heads(CONFIG, PARAMS, 1)
    differ = {p for p in params if not equal(params[p], mean[p])}
    assert {p.rpartition("/")[2] for p in differ} == {"key", "value"}
    assert np.isfinite(logits(config, params, 0)).all()


def test_converted_decoder_is_one_that_the_config_describes():
    config, params = hm.convert_heads(CONFIG, PARAMS, 1)
    assert config == dataclasses.replace(CONFIG, num_kv_heads=1)
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, hm.build(config).param_shapes)


def test_mean_of_bfloat16_heads_is_taken_in_float32():
    config = dataclasses.replace(CONFIG, num_kv_heads=12, param_dtype="bfloat16")
    params = disturb(hm.build(config).init(jax.random.key(2)))
    path = "decoder_lm/decoder/layer_0/attention/key"
    wide = np.asarray(params[path]["w"], np.float32).reshape(24, 12, 6).mean(axis=1)
    _, pooled = hm.convert_heads(config, params, 1)
    assert (pooled[path]["w"] == jnp.asarray(wide, jnp.bfloat16)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_kv_heads": 3}, "must divide the present 4 or be a multiple"),
        ({"num_kv_heads": 5}, "must divide num_heads = 12"),
        ({"num_kv_heads": 0}, "must divide num_heads = 12"),
        ({"num_kv_heads": 2.0}, "must be a whole number"),
        ({"num_kv_heads": 2, "method": "meen"}, "did you mean 'mean'"),
        ({"num_kv_heads": 2, "method": "random"}, "rng must be given"),
    ],
)
def test_misuse_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        hm.convert_heads(CONFIG, PARAMS, **arguments)


def test_config_comes_before_parameters():
    with pytest.raises(ValueError, match="config must be a DecoderConfig, got dict"):
        hm.convert_heads(PARAMS, CONFIG, 1)


def test_parameters_of_another_config_are_refused():
    other = dataclasses.replace(CONFIG, num_kv_heads=12)
    with pytest.raises(ValueError, match="params do not fit the model"):
        hm.convert_heads(other, PARAMS, 1)
