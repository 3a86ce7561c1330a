"""A text is scored token by token, each once, as if every one had been asked alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import haiku_mqa as hm
from haiku_mqa.training import (
    Evaluation,
    cross_entropy,
    evaluate,
    make_loss,
    validation_batches,
)
from haiku_mqa.training.evaluate import _batches, _program
from haiku_mqa.training.loss import mean_loss
from tests.models import EXAMPLES, drawn_params, example, example_params

SAME = 1e-5  # of losses, in nats
MODEL = example("multi_query")
PARAMS = example_params("multi_query")
TEXT = np.random.default_rng(0).integers(0, MODEL.config.vocab_size, 41)

logits_of = jax.jit(lambda params, tokens: MODEL.apply(params, None, tokens).logits)


def one_by_one(context):
    """Returns the loss with each token predicted by a call of its own."""
    losses = []
    for place in range(1, len(TEXT)):
        read = TEXT[max(0, place - context) : place]
        # Padding on the right changes nothing before it, and spares compiling.
        padded = np.pad(read, (0, context - len(read)))[None]
        logits = logits_of(PARAMS, padded)[0, len(read) - 1]
        losses.append(float(cross_entropy(logits, jnp.asarray(TEXT[place])).sum))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("context", [1, 7, 16])
def test_stride_of_one_scores_each_token_by_all_that_the_context_holds(context):
    result = evaluate(MODEL, PARAMS, TEXT, context=context, stride=1)
    assert result.loss == pytest.approx(one_by_one(context), abs=SAME)
    assert result.num_tokens == len(TEXT) - 1


def test_stride_of_a_whole_context_is_the_validation_loss_of_a_run():
    loss = make_loss(MODEL)
    batches = validation_batches(TEXT, seq_len=8, batch_size=2)
    whole = mean_loss(loss(PARAMS, batch, None) for batch in batches)
    result = evaluate(MODEL, PARAMS, TEXT, context=8, stride=8)
    assert result.loss == pytest.approx(whole, abs=SAME)


def test_context_that_holds_the_whole_text_is_one_plain_forward():
    logits = MODEL.apply(PARAMS, None, TEXT[None, :-1]).logits
    plain = cross_entropy(logits, jnp.asarray(TEXT[None, 1:])).mean
    result = evaluate(MODEL, PARAMS, TEXT, context=64)
    assert result.loss == pytest.approx(float(plain), abs=SAME)


@st.composite
def slides(draw):
    context = draw(st.integers(1, 12))
    return {
        "context": context,
        "stride": draw(st.integers(1, context)),
        "batch_size": draw(st.integers(1, 5)),
    }


# --- Which tokens are scored, and from what -------------------------------------------


def walk(length, slide):
    """Returns the batches of a text in which each token tells its place."""
    return list(_batches(np.arange(length), **slide))


@given(slides(), st.integers(2, 80))
def test_every_token_but_the_first_is_scored_once_from_those_before_it(slide, length):
    for batch in walk(length, slide):
        assert (batch.labels == batch.tokens + 1)[batch.mask].all()
    labels = np.concatenate([b.labels[b.mask] for b in walk(length, slide)])
    assert labels.tolist() == list(range(1, length))


@given(slides(), st.integers(2, 80))
def test_token_is_predicted_from_all_before_it_or_context_less_stride(slide, length):
    context, stride = slide["context"], slide["stride"]
    for batch in walk(length, slide):
        for row, place in np.argwhere(batch.mask):
            read = batch.tokens[row, : place + 1]
            label = batch.labels[row, place]
            assert read.tolist() == list(range(label - len(read), label))
            assert len(read) == label or len(read) > context - stride


@given(slides(), st.integers(2, 80))
def test_batches_have_one_shape(slide, length):
    shapes = {batch.tokens.shape for batch in walk(length, slide)}
    assert shapes == {(slide["batch_size"], slide["context"])}


# --- The result -----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_result_does_not_depend_on_the_batch_size(batch_size):
    one = evaluate(MODEL, PARAMS, TEXT, context=6, stride=2)
    other = evaluate(MODEL, PARAMS, TEXT, context=6, stride=2, batch_size=batch_size)
    assert other.loss == pytest.approx(one.loss, abs=SAME)
    assert other.num_tokens == one.num_tokens


def test_program_is_compiled_once_for_texts_of_every_length():
    program = _program(MODEL)
    before = program._cache_size()
    for length in (2, 20, 41):
        evaluate(MODEL, PARAMS, TEXT[:length], context=5, batch_size=2)
    assert program._cache_size() == before + 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kind_of_model_can_be_scored(name):
    tokens = TEXT % EXAMPLES[name].vocab_size
    result = evaluate(example(name), example_params(name), tokens, context=16)
    assert 0 < result.loss < 20


def test_context_is_the_models_and_the_stride_half_of_it():
    result = evaluate(MODEL, PARAMS, TEXT)
    assert (result.context, result.stride) == (64, 32)


def test_context_of_a_model_with_a_long_one_is_1024():
    config = hm.DecoderConfig(
        vocab_size=16, num_layers=1, num_heads=1, d_model=4, d_ff=4, max_length=8192
    )
    model = hm.build(config)
    result = evaluate(model, drawn_params(model), [1, 2, 3], batch_size=1)
    assert (result.context, result.stride) == (1024, 512)


def test_arguments_are_left_as_they_were():
    tokens, params = TEXT.copy(), jax.tree.map(np.array, PARAMS)
    evaluate(MODEL, params, tokens, context=8)
    assert (tokens == TEXT).all()
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_perplexity_and_bits_per_byte_follow_from_the_loss():
    result = evaluate(MODEL, PARAMS, TEXT, num_bytes=80)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    bits = result.loss * 40 / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / 80)


def test_bits_per_byte_are_unknown_where_the_bytes_are():
    assert evaluate(MODEL, PARAMS, TEXT).bits_per_byte is None


def test_perplexity_that_is_no_float_is_a_large_one():
    hopeless = Evaluation(loss=1e5, num_tokens=1, context=2, stride=1)
    assert math.isfinite(hopeless.perplexity)


def test_every_predicted_token_is_told_as_it_is():
    told = []
    evaluate(MODEL, PARAMS, TEXT, context=8, batch_size=2, on_batch=told.append)
    assert len(told) > 1
    assert sum(told) == len(TEXT) - 1


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [[], [3]])
def test_text_without_a_token_to_predict_is_refused(tokens):
    with pytest.raises(ValueError, match=f"at least 2, .* got {len(tokens)}"):
        evaluate(MODEL, PARAMS, np.array(tokens, int))


@pytest.mark.parametrize("token", [-1, 29])
def test_token_out_of_range_is_refused(token):
    with pytest.raises(ValueError, match=rf"from 0 to 28 .* got {token}"):
        evaluate(MODEL, PARAMS, [1, token, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be a whole number from 1 to 64, got 0"),
        ({"context": 65}, "context must be a whole number from 1 to 64, got 65"),
        ({"context": 8, "stride": 9}, "stride must be a whole number from 1 to 8"),
        ({"stride": 0}, "stride must be a whole number from 1 to 64, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"num_bytes": -1}, "num_bytes must be a whole number >= 0, got -1"),
    ],
)
def test_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL, PARAMS, TEXT, **options)


def test_loss_that_is_not_finite_is_an_error():
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        evaluate(MODEL, broken, TEXT)
