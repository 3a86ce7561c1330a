from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa.checks import check_finite, check_params, check_tokens
from tests.models import EXAMPLES, example, example_params, example_tokens

NAME = "multi_query"
QUERY = "decoder_lm/decoder/layer_0/attention/query"


def _params(**changes):
    """Returns the example's parameters with modules replaced, or left out if None."""
    params = {**example_params(NAME), **changes}
    return {path: leaves for path, leaves in params.items() if leaves is not None}


def _expected():
    return example(NAME).param_shapes


def test_parameters_of_the_model_are_accepted_from_jax_and_from_numpy():
    check_params(_params(), _expected())
    check_params(jax.tree.map(np.asarray, _params()), _expected())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parameters_of_another_float_are_accepted(dtype):
    check_params(jax.tree.map(lambda leaf: leaf.astype(dtype), _params()), _expected())


def test_missing_parameter_is_named():
    with pytest.raises(ValueError, match=f"do not fit the model: missing {QUERY}/w"):
        check_params(_params(**{QUERY: None}), _expected())


def test_extra_parameter_is_named():
    with pytest.raises(ValueError, match="do not fit the model: extra adapter/w"):
        check_params(_params(adapter={"w": jnp.ones(2)}), _expected())


def test_misshapen_parameter_is_named_with_both_shapes():
    down = "decoder_lm/decoder/layer_1/feed_forward/down"
    transposed = {"w": example_params(NAME)[down]["w"].T}
    message = rf"{down}/w has shape \[32, 40\], expected \[40, 32\]"
    with pytest.raises(ValueError, match=message):
        check_params(_params(**{down: transposed}), _expected())


@pytest.mark.parametrize("dtype", ["int8", "int32", "bool", "complex64"])
def test_parameter_that_is_not_floating_point_is_refused(dtype):
    whole = {"w": example_params(NAME)[QUERY]["w"].astype(dtype)}
    with pytest.raises(ValueError, match=f"{QUERY}/w has dtype {dtype}, expected"):
        check_params(_params(**{QUERY: whole}), _expected())


def test_many_faults_are_counted_and_the_first_are_shown():
    with pytest.raises(ValueError, match=r"missing .*; and \d+ more$") as error:
        check_params({}, _expected())
    assert str(error.value).count("missing") == 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_named(value):
    check_finite(_params())
    broken = {"w": example_params(NAME)[QUERY]["w"].at[3, 4].set(value)}
    with pytest.raises(ValueError, match=f"NaN or infinity in: {QUERY}/w$"):
        check_finite(_params(**{QUERY: broken}))


def test_tokens_of_every_integer_dtype_are_accepted():
    for dtype in ("int8", "uint8", "int32", "int64", "uint32"):
        check_tokens("tokens", np.array([[0, 8]], dtype), vocab_size=9)


@pytest.mark.parametrize(
    ("token", "place"), [(9, [0, 1]), (-1, [0, 1]), (2**32 + 1, [0, 1])]
)
def test_token_out_of_range_is_named_with_its_place(token, place):
    tokens = np.array([[0, token]], np.int64)
    with pytest.raises(ValueError, match=r"from 0 to 8 \(vocab_size = 9\)") as error:
        check_tokens("tokens", tokens, vocab_size=9)
    assert str(error.value).endswith(f"got {token} at {place}")


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 3), (3, 0), ()])
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\] with at least one"):
        check_tokens("tokens", np.zeros(shape, np.int32), vocab_size=9)


@pytest.mark.parametrize("tokens", [[[1, 2]], np.ones((1, 2)), np.ones((1, 2), bool)])
def test_tokens_that_are_no_array_of_whole_numbers_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens must be an array of whole numbers"):
        check_tokens("tokens", tokens, vocab_size=9)


def _call(**arguments):
    model, tokens = example(NAME), example_tokens(NAME)
    return model.apply(example_params(NAME), None, tokens, **arguments)


@pytest.mark.parametrize("name", ["positions", "segment_ids"])
def test_ids_beside_tokens_must_have_their_shape_and_be_whole(name):
    with pytest.raises(ValueError, match=rf"{name} must have the shape of tokens"):
        _call(**{name: jnp.zeros((2, 6), jnp.int32)})
    with pytest.raises(ValueError, match=f"{name} must be an array of whole numbers"):
        _call(**{name: jnp.zeros((2, 7))})
    with pytest.raises(ValueError, match=f"{name} must be from .* got 4294967297"):
        _call(**{name: np.full((2, 7), 2**32 + 1)})


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 1, 1)])
def test_logits_at_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits_at must be \[B, M\] with B = 2"):
        _call(logits_at=np.zeros(shape, np.int32))


@pytest.mark.parametrize("place", [-1, 7])
def test_logits_at_a_place_that_is_not_there_are_refused(place):
    with pytest.raises(ValueError, match=f"logits_at must be from 0 to 6 .* {place} "):
        _call(logits_at=np.array([[0], [place]]))


def test_cache_for_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"cache must have one row .* 2, got 3"):
        _call(cache=example(NAME).init_cache(3, 8))


@pytest.mark.parametrize("other", ["multi_head", "grouped", "capped"])
def test_cache_of_another_model_is_refused(other):
    assert EXAMPLES[other].num_kv_heads != EXAMPLES[NAME].num_kv_heads
    with pytest.raises(
        ValueError, match=r"cache must have 2 layers with K, H and value size"
    ):
        _call(cache=example(other).init_cache(2, 8))


def test_rng_is_asked_for_where_dropout_is_to_act():
    model, params = example("dropout"), example_params("dropout")
    with pytest.raises(ValueError, match="rng must be given where is_training=True"):
        model.apply(params, None, example_tokens("dropout"), is_training=True)
