from __future__ import annotations

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import DecoderConfig, DecoderLM, Model
from haiku_mqa.ops import alibi_slopes
from tests.models import (
    EXAMPLES,
    drawn_params,
    example,
    example_logits,
    example_params,
    example_tokens,
)

SAME = 1e-5
B, T, PAD = 2, 7, 3


@functools.cache
def _compiled(config: DecoderConfig):
    model = Model(config)

    @functools.partial(jax.jit, static_argnames="return_attention")
    def forward(params, tokens, *, return_attention=False, **arguments):
        return model.apply(
            params, None, tokens, return_attention=return_attention, **arguments
        )

    return forward


def _call(name: str, tokens=None, **arguments):
    tokens = example_tokens(name) if tokens is None else tokens
    return _compiled(EXAMPLES[name])(example_params(name), tokens, **arguments)


def test_module_inside_a_transform_is_the_model():
    init, apply = hk.without_apply_rng(
        hk.transform(lambda tokens: DecoderLM(EXAMPLES["grouped"])(tokens).logits)
    )
    tokens, params = example_tokens("grouped"), example_params("grouped")
    shapes = jax.eval_shape(init, jax.random.key(0), tokens)
    assert shapes == example("grouped").param_shapes
    np.testing.assert_allclose(
        jax.jit(apply)(params, tokens), example_logits("grouped"), atol=SAME
    )


def test_tied_logits_are_those_of_an_output_matrix_that_is_the_embeddings():
    tied = EXAMPLES["multi_query"]
    untied = dataclasses.replace(tied, tie_embeddings=False)
    table = example_params("multi_query")["decoder_lm/embed"]["embeddings"]
    params = {**example_params("multi_query"), "decoder_lm/unembed": {"w": table.T}}
    logits = _compiled(untied)(params, example_tokens("multi_query")).logits
    np.testing.assert_allclose(logits, example_logits("multi_query"), atol=SAME)


def test_embedding_scale_multiplies_what_is_read_and_not_what_is_written():
    plain = dataclasses.replace(EXAMPLES["multi_head"], embedding_scale=None)
    scaled = dataclasses.replace(plain, embedding_scale=3.0)
    params = example_params("multi_head")
    table = params["decoder_lm/embed"]["embeddings"]
    longer = {**params, "decoder_lm/embed": {"embeddings": 3 * table}}
    tokens = example_tokens("multi_head")
    np.testing.assert_allclose(
        _compiled(scaled)(params, tokens).logits,
        _compiled(plain)(longer, tokens).logits,  # its output matrix is another
        atol=SAME,
    )


def test_logit_scale_multiplies_the_logits():
    plain = dataclasses.replace(EXAMPLES["mixed"], logit_scale=None)
    logits = _compiled(plain)(example_params("mixed"), example_tokens("mixed")).logits
    np.testing.assert_allclose(2 * logits, example_logits("mixed"), atol=SAME)


def test_residual_scale_multiplies_what_each_part_adds():
    scaled = EXAMPLES["mixed"]
    plain = dataclasses.replace(scaled, residual_scale=None)
    params = example_params("mixed")
    smaller = {
        path: {"w": leaves["w"] * 0.5} if path.endswith(("linear", "down")) else leaves
        for path, leaves in params.items()
    }
    logits = _compiled(plain)(smaller, example_tokens("mixed")).logits
    np.testing.assert_allclose(logits, example_logits("mixed"), atol=SAME)


def test_a_layer_without_rotary_positions_is_that_of_a_decoder_without_any():
    bare = dataclasses.replace(EXAMPLES["mixed"], rope_theta=(None, None))
    none = dataclasses.replace(bare, position_embedding="none")
    params, tokens = example_params("mixed"), example_tokens("mixed")
    one, other = (_compiled(config)(params, tokens).logits for config in (bare, none))
    np.testing.assert_array_equal(one, other)
    assert float(jnp.abs(one - example_logits("mixed")).max()) > 1e-3


def test_logit_bias_is_added_before_logits_are_scaled_and_capped():
    config, params = EXAMPLES["by_head"], example_params("by_head")
    off = {"logit_bias": False, "logit_scale": None, "final_logit_softcap": None}
    plain = dataclasses.replace(config, **off)
    bare = {path: p for path, p in params.items() if path != "decoder_lm/unembed"}
    logits = _compiled(plain)(bare, example_tokens("by_head")).logits
    logits = 0.3 * (logits + params["decoder_lm/unembed"]["b"])
    np.testing.assert_allclose(
        5 * jnp.tanh(logits / 5), example_logits("by_head"), atol=SAME
    )


def test_final_softcap_caps_the_logits():
    free = dataclasses.replace(EXAMPLES["capped"], final_logit_softcap=None)
    logits = _compiled(free)(example_params("capped"), example_tokens("capped")).logits
    assert float(jnp.abs(logits).max()) > 1
    np.testing.assert_allclose(
        5 * jnp.tanh(logits / 5), example_logits("capped"), atol=SAME
    )


def test_logits_at_gives_those_of_the_places_named():
    places = jnp.asarray([[6, 0, 2], [1, 1, 5]])
    expected = jnp.take_along_axis(example_logits("alibi"), places[..., None], axis=1)
    logits = _call("alibi", logits_at=places).logits
    np.testing.assert_allclose(logits, expected, atol=SAME)


@pytest.mark.parametrize("name", ["grouped", "capped", "windowed", "classic"])
def test_attention_weights_are_causal_within_the_window_and_sum_to_one(name):
    config = EXAMPLES[name]
    attention = _call(name, return_attention=True).attention
    assert len(attention) == config.num_layers
    behind = np.arange(T)[:, None] - np.arange(T)[None, :]
    for weights, window in zip(attention, config.windows, strict=True):
        assert weights.shape == (B, config.num_heads, T, T)
        seen = (behind >= 0) & (behind < (window or T))
        assert bool((weights[..., ~seen] == 0).all())
        assert bool((weights[..., seen] > 0).all())
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=SAME)


def test_attention_weights_over_a_cache_are_zero_where_nothing_is_stored():
    cache = example("grouped").init_cache(B, 9)
    out = _call("grouped", cache=cache, return_attention=True)
    full = _call("grouped", return_attention=True).attention
    for weights, expected in zip(out.attention, full, strict=True):
        assert weights.shape == (B, 6, T, 9)
        assert bool((weights[..., T:] == 0).all())
        np.testing.assert_allclose(weights[..., :T], expected, atol=SAME)


def test_attention_weights_are_not_returned_unless_asked_for():
    assert _call("grouped").attention is None
    assert _call("grouped").cache is None


def test_alibi_weights_fall_with_distance_by_the_slope_of_the_head():
    params = {
        path: jax.tree.map(jnp.zeros_like, leaves) if "query" in path else leaves
        for path, leaves in example_params("alibi").items()
    }
    forward = _compiled(EXAMPLES["alibi"])
    out = forward(params, example_tokens("alibi"), return_attention=True)
    behind = np.arange(T)[:, None] - np.arange(T)[None, :]
    bias = -alibi_slopes(6)[:, None, None] * behind
    expected = jax.nn.softmax(jnp.where(behind >= 0, bias, -jnp.inf), axis=-1)
    for weights in out.attention:
        np.testing.assert_allclose(weights[0], expected, atol=SAME)


def test_learned_positions_are_rows_of_the_table():
    tokens = example_tokens("learned")
    params = example_params("learned")
    table = params["decoder_lm/position_embed"]["embeddings"]
    rolled = {
        **params,
        "decoder_lm/position_embed": {"embeddings": jnp.roll(table, -4, axis=0)},
    }
    places = jnp.broadcast_to(jnp.arange(T) + 4, (B, T))
    forward = _compiled(EXAMPLES["learned"])
    np.testing.assert_allclose(
        forward(params, tokens, positions=places).logits,
        forward(rolled, tokens).logits,
        atol=SAME,
    )


@pytest.mark.parametrize("name", ["multi_query", "grouped", "one_norm", "alibi"])
def test_relative_positions_do_not_care_where_a_row_begins(name):
    places = jnp.broadcast_to(jnp.arange(T) + 1000, (B, T))
    moved = _call(name, positions=places).logits
    np.testing.assert_allclose(moved, example_logits(name), atol=5 * SAME)


@pytest.mark.parametrize("name", ["multi_query", "learned", "alibi"])
def test_positions_matter(name):
    apart = jnp.broadcast_to(2 * jnp.arange(T), (B, T))
    assert not np.allclose(
        _call(name, positions=apart).logits, example_logits(name), atol=1e-2
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["multi_head", "learned", "alibi", "windowed"])
def test_padding_on_either_side_changes_nothing(name, side):
    tokens = example_tokens(name)
    before, after = (PAD, 0) if side == "left" else (0, PAD)
    padded = jnp.pad(tokens, ((0, 0), (before, after)), constant_values=1)
    real = jnp.pad(jnp.ones((B, T), bool), ((0, 0), (before, after)))
    logits = _call(name, padded, mask=real).logits[:, before : before + T]
    np.testing.assert_allclose(logits, example_logits(name), atol=SAME)


@pytest.mark.parametrize("name", ["multi_head", "learned", "alibi", "windowed"])
def test_packed_segments_are_read_as_if_each_stood_alone(name):
    first, second = example_tokens(name), example_tokens(name, seed=1)
    packed = jnp.concatenate([first, second], axis=1)
    segments = jnp.repeat(jnp.asarray([[4, 9]] * B), T, axis=1)
    logits = _call(name, packed, segment_ids=segments).logits
    np.testing.assert_allclose(logits[:, :T], example_logits(name), atol=SAME)
    np.testing.assert_allclose(logits[:, T:], _call(name, second).logits, atol=SAME)


@pytest.mark.parametrize("shape", [(B, T, T), (B, 1, T, T), (1, 4, T, T)])
def test_mask_of_pairs_adds_to_causality(shape):
    logits = _call("multi_query", mask=jnp.ones(shape, bool)).logits
    np.testing.assert_allclose(logits, example_logits("multi_query"), atol=SAME)
    blind = jnp.ones(shape, bool).at[..., 0].set(False).at[..., 0, 0].set(True)
    tokens = example_tokens("multi_query")
    seen, unseen = (
        _call("multi_query", first, mask=blind).logits
        for first in (tokens, tokens.at[:, 0].set((tokens[:, 0] + 1) % 29))
    )
    np.testing.assert_array_equal(seen[:, 1:], unseen[:, 1:])


def test_a_row_of_padding_alone_gives_finite_logits_and_gradients():
    model = example("multi_query")
    tokens, real = example_tokens("multi_query"), jnp.zeros((B, T), bool)

    def loss(params):
        return (model.apply(params, None, tokens, mask=real).logits ** 2).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(example_params("multi_query"))
    assert bool(jnp.isfinite(value))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "float16"])
def test_cache_of_another_dtype_keeps_it_and_stays_near(cache_dtype):
    model = example("grouped")
    cache = model.init_cache(B, T, dtype=cache_dtype)
    out = _call("grouped", cache=cache)
    assert out.cache.layers[0].keys.dtype == cache_dtype
    np.testing.assert_allclose(out.logits, example_logits("grouped"), atol=0.1)


def test_parameters_in_bfloat16_are_used_in_float32_where_that_is_computed_in():
    config = dataclasses.replace(EXAMPLES["multi_query"], param_dtype="bfloat16")
    params = drawn_params(Model(config))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    tokens = example_tokens("multi_query")
    np.testing.assert_allclose(
        _compiled(config)(params, tokens).logits,
        _compiled(EXAMPLES["multi_query"])(wide, tokens).logits,
        atol=SAME,
    )
