"""What JAX and Haiku accept in silence ends in a clear error, or in the right answer.

Each test is a row of the table of silent inputs that the decoder itself can meet.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import DecoderConfig, Sampling, generate
from haiku_mqa.checks import check_finite
from tests.models import (
    BATCH,
    LENGTH,
    example,
    example_logits,
    example_params,
    example_tokens,
)

SAME = 1e-5
NAME, V = "multi_query", 29
GREEDY = Sampling(temperature=0.0)


def _apply(name: str = NAME, tokens=None, params=None, **arguments):
    return example(name).apply(
        example_params(name) if params is None else params,
        None,
        example_tokens(name) if tokens is None else tokens,
        **arguments,
    )


def _read(name: str, tokens, **arguments):
    """Calls the model with values that it can see, compiled for speed."""
    model = example(name)
    return jax.jit(lambda params: model.apply(params, None, tokens, **arguments))(
        example_params(name)
    )


@functools.cache
def _compiled(name: str):
    model = example(name)
    return jax.jit(
        lambda params, tokens, arguments: model.apply(params, None, tokens, **arguments)
    )


def _jit(name: str = NAME, tokens=None, **arguments):
    tokens = example_tokens(name) if tokens is None else tokens
    return _compiled(name)(example_params(name), tokens, arguments)


def test_heads_that_kv_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads = 6"):
        DecoderConfig(
            vocab_size=V,
            num_layers=1,
            num_heads=6,
            num_kv_heads=4,
            d_model=12,
            d_ff=12,
        )


def test_odd_rotary_size_is_refused():
    with pytest.raises(ValueError, match="must rotate an even number of sizes"):
        DecoderConfig(vocab_size=V, num_layers=1, num_heads=4, d_model=12, d_ff=12)


def test_float_token_ids_are_refused():
    with pytest.raises(ValueError, match="tokens must be an array of whole numbers"):
        _apply(tokens=example_tokens(NAME).astype(jnp.float32))


@pytest.mark.parametrize("token", [V, -1, -100, 2**32 + 1])
def test_token_id_out_of_range_is_refused(token):
    tokens = np.array(example_tokens(NAME), np.int64)
    tokens[1, 3] = token
    message = rf"from 0 to 28 \(vocab_size = 29\), got {token} at \[1, 3\]"
    with pytest.raises(ValueError, match=message):
        _apply(tokens=tokens)


@pytest.mark.parametrize("token", [V, 2**31 - 1, -1, -(2**31)])
def test_token_id_out_of_range_under_jit_is_nan_from_there_on(token):
    tokens = example_tokens(NAME).at[1, 3].set(token)
    logits = _jit(tokens=tokens).logits
    assert bool(jnp.isnan(logits[1, 3:]).all())
    np.testing.assert_allclose(logits[0], example_logits(NAME)[0], atol=SAME)


def test_token_id_out_of_range_under_jit_makes_the_loss_nan():
    tokens = example_tokens(NAME).at[0, 0].set(V)
    assert bool(jnp.isnan(_jit(tokens=tokens).logits.mean()))


def test_transposed_mask_is_refused_where_a_cache_makes_its_axes_differ():
    cache = example(NAME).init_cache(BATCH, LENGTH + 2)
    for shape in ((BATCH, LENGTH + 2, LENGTH), (BATCH, 4, LENGTH + 2, LENGTH)):
        with pytest.raises(ValueError, match=r"mask must be .*T = 7, S = 9"):
            _apply(mask=jnp.ones(shape, bool), cache=cache)


@pytest.mark.parametrize("shape", [(LENGTH, BATCH), (BATCH, LENGTH + 1), (1, LENGTH)])
def test_padding_mask_on_the_wrong_axis_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask with two axes must be bool \[B, T\]"):
        _apply(mask=jnp.ones(shape, bool))


@pytest.mark.parametrize("shape", [(BATCH, LENGTH), (BATCH, 1, LENGTH, LENGTH)])
def test_float_mask_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask must be boolean .* got dtype float32"):
        _apply(mask=jnp.full(shape, -1e9))
    with pytest.raises(ValueError, match="mask must be boolean"):
        _jit(mask=jnp.zeros(shape))


@pytest.mark.parametrize("name", [NAME, "bfloat16", "float16"])
def test_fully_masked_query_gives_finite_logits(name):
    mask = jnp.ones((BATCH, 1, LENGTH, LENGTH), bool).at[:, :, 3].set(False)
    assert bool(jnp.isfinite(_jit(name, mask=mask).logits).all())


def test_bfloat16_positions_are_refused():
    positions = jnp.full((BATCH, LENGTH), 257, jnp.bfloat16)
    with pytest.raises(ValueError, match="positions must be an array of whole numbers"):
        _apply(positions=positions)
    with pytest.raises(ValueError, match="positions must be an array of whole numbers"):
        _jit(positions=positions)


@pytest.mark.parametrize("position", [24, -1])
def test_position_past_the_learned_table_is_refused(position):
    positions = jnp.zeros((BATCH, LENGTH), jnp.int32).at[1, 2].set(position)
    with pytest.raises(ValueError, match="max_length = 24, the size of the learned"):
        _apply("learned", positions=positions)


@pytest.mark.parametrize("position", [24, -1])
def test_position_past_the_learned_table_under_jit_is_nan(position):
    positions = jnp.zeros((BATCH, LENGTH), jnp.int32).at[1, 2].set(position)
    assert bool(jnp.isnan(_jit("learned", positions=positions).logits[1, 2:]).all())


def test_more_tokens_than_the_learned_table_are_refused_also_while_tracing():
    tokens = jnp.zeros((1, 25), jnp.int32)
    with pytest.raises(ValueError, match="max_length = 24"):
        _apply("learned", tokens)
    with pytest.raises(ValueError, match="max_length = 24"):
        _jit("learned", tokens)


def test_decoding_past_the_learned_table_is_refused():
    tokens = jnp.zeros((1, 20), jnp.int32)
    cache = _read("learned", tokens, cache=example("learned").init_cache(1, 30)).cache
    assert bool(jnp.isfinite(_read("learned", tokens[:, :4], cache=cache).logits).all())
    with pytest.raises(ValueError, match="max_length = 24"):
        _apply("learned", tokens[:, :5], cache=cache)


def test_long_rows_of_short_segments_fit_the_learned_table():
    tokens = example_tokens("learned", length=48)
    segments = jnp.repeat(jnp.asarray([[0, 1]] * BATCH), 24, axis=1)
    packed = _apply("learned", tokens, segment_ids=segments).logits
    alone = _read("learned", tokens[:, 24:]).logits
    np.testing.assert_allclose(packed[:, 24:], alone, atol=SAME)


def test_long_rows_of_padding_fit_the_learned_table():
    tokens = example_tokens("learned", length=30)
    real = jnp.stack([jnp.arange(30) >= 10] * BATCH)
    padded = _apply("learned", tokens, mask=real).logits
    alone = _read("learned", tokens[:, 10:]).logits
    np.testing.assert_allclose(padded[:, 10:], alone, atol=SAME)


def test_cache_past_its_end_is_refused():
    cache = example(NAME).init_cache(BATCH, LENGTH - 1)
    with pytest.raises(ValueError, match="cache has room for 6 tokens, and row 0"):
        _apply(cache=cache)


def test_cache_past_its_end_under_jit_is_flagged_and_keeps_its_history():
    cache = example(NAME).init_cache(BATCH, LENGTH + 2)
    before = _jit(cache=cache).cache
    after = _jit(cache=before).cache
    assert after.overflowed.tolist() == [True] * BATCH
    for old, new in zip(before.layers, after.layers, strict=True):
        np.testing.assert_array_equal(new.keys[:, :, :LENGTH], old.keys[:, :, :LENGTH])
        np.testing.assert_array_equal(
            new.values[:, :, :LENGTH], old.values[:, :, :LENGTH]
        )


QUERY = "decoder_lm/decoder/layer_0/attention/query"


def _changed(leaf=None, **modules):
    params = {**example_params(NAME), **modules}
    if leaf is not None:
        params[QUERY] = {"w": leaf}
    return params


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (_changed(other={"w": jnp.ones(3)}), "extra other/w"),
        ({}, "missing decoder_lm/"),
        (_changed(jnp.ones((32, 31))), r"shape \[32, 31\], expected \[32, 32\]"),
        (_changed(jnp.ones((32, 32), jnp.int8)), "dtype int8, expected floating"),
    ],
    ids=["extra", "missing", "misshapen", "int8"],
)
def test_parameters_of_another_model_are_refused(params, message):
    with pytest.raises(ValueError, match=f"params do not fit the model: .*{message}"):
        _apply(params=params)
    with pytest.raises(ValueError, match=f"params do not fit the model: .*{message}"):
        generate(example(NAME), params, [[1]], max_new_tokens=1)


def test_nan_parameters_are_found_on_asking_and_stop_generation():
    params = _changed(jnp.full((32, 32), jnp.nan))
    with pytest.raises(ValueError, match=f"NaN or infinity in: {QUERY}/w"):
        check_finite(params)
    with pytest.raises(FloatingPointError, match="logits of row 0 are NaN"):
        generate(example(NAME), params, [[1], [2]], max_new_tokens=3)


def test_temperature_zero_is_greedy():
    prompts = [[1, 2, 3], [4]]
    got = generate(
        example(NAME), example_params(NAME), prompts, max_new_tokens=3, sampling=GREEDY
    )
    logits = [_read(NAME, jnp.asarray([prompt])).logits for prompt in prompts]
    first = [int(row[0, -1].argmax()) for row in logits]
    assert [tokens[0] for tokens in got.tokens] == first


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), 1e-9])
def test_temperature_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="temperature must be 0 or a number"):
        Sampling(temperature=value)


def test_top_k_above_the_vocabulary_is_all_of_it():
    def sampled(top_k):
        return generate(
            example(NAME),
            example_params(NAME),
            [[1, 2]],
            max_new_tokens=8,
            sampling=Sampling(top_k=top_k),
            rng=jax.random.key(0),
        ).tokens

    assert sampled(V + 1) == sampled(V) == sampled(2**31 - 1) == sampled(None)


def test_key_is_never_used_twice_while_sampling():
    with jax.debug_key_reuse(True):
        generate(
            example(NAME),
            example_params(NAME),
            [[1, 2], [1, 2]],
            max_new_tokens=4,
            sampling=Sampling(),
            rng=jax.random.key(0),
        )
