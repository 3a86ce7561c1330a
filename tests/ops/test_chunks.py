"""Attention by chunks of queries is attention, and holds no more than a chunk's."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.ops import causal_mask, multi_query_attention
from haiku_mqa.ops.chunks import queries_at_once

EQUAL = 1e-5  # float32, the same sums
B, T, S, N, K, H, V = 2, 5, 7, 6, 2, 8, 3  # V is v, the size of a value head
CASES = {  # shapes of a mask and a bias, and a softcap
    "all see all": (None, None, None),
    "one mask": ((T, S), None, None),
    "padding and a bias by heads": ((B, 1, S), (N, 1, S), None),
    "a mask by heads, a bias and a cap": ((B, N, T, S), (T, S), 2.0),
}
LONG = 4096  # tokens, whose logits would be 1 GB


def by(size):
    """Has every attention inside be by chunks of so many queries."""
    return mock.patch(
        "haiku_mqa.ops.attention.queries_at_once", lambda *shape: min(size, shape[2])
    )


def loss(arrays, weights, mask, softcap):
    out = multi_query_attention(**arrays, mask=mask, softcap=softcap)
    return (out.astype(jnp.float32) * weights).sum(), out


@functools.cache
def output_and_gradients(softcap, size):
    """Returns a program of its own, in which chunks are of so many queries."""

    def both(arrays, weights, mask):
        with by(size):
            (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(
                arrays, weights, mask, softcap
            )
        return out, gradients

    return jax.jit(both)


def drawn(seed, mask_shape, bias_shape, dtype="float32", tokens=T):
    draw = np.random.default_rng(seed)
    shapes = {"query": (B, tokens, N, H), "key": (B, S, K, H), "value": (B, S, K, V)}
    arrays = {n: jnp.asarray(draw.standard_normal(s), dtype) for n, s in shapes.items()}
    if bias_shape:
        arrays["bias"] = jnp.asarray(draw.standard_normal(bias_shape), jnp.float32)
    weights = jnp.asarray(draw.standard_normal((B, tokens, N, V)), jnp.float32)
    mask = jnp.asarray(draw.random(mask_shape) < 0.6) if mask_shape else None
    return arrays, weights, mask


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_chunks_attend_and_pass_gradients_as_all_queries_at_once(case, size, seed):
    mask_shape, bias_shape, softcap = CASES[case]
    inputs = drawn(seed, mask_shape, bias_shape)
    at_once = output_and_gradients(softcap, T)(*inputs)
    in_chunks = output_and_gradients(softcap, size)(*inputs)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=EQUAL), in_chunks, at_once
    )


def test_gradients_of_keys_in_half_precision_are_summed_in_full():
    arrays, weights, _ = drawn(0, None, None, "bfloat16", tokens=256)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
    _, expected = output_and_gradients(None, 256)(exact, weights, None)

    def error(size, name):
        _, found = output_and_gradients(None, size)(arrays, weights, None)
        return jnp.abs(found[name].astype(jnp.float32) - expected[name]).mean()

    for name in ("key", "value"):  # which every chunk adds to
        assert error(4, name) < 2 * error(256, name), name


@pytest.mark.parametrize("options", [{"return_weights": True}, {"dropout_rate": 0.5}])
def test_weights_that_are_dropped_or_returned_are_of_all_queries(options):
    arrays, _, _ = drawn(0, None, None)
    options = {**options, "dropout_rng": jax.random.key(0)}
    expected = multi_query_attention(**arrays, **options)
    with by(2):
        got = multi_query_attention(**arrays, **options)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@given(*(st.integers(1, 10**6) for _ in range(4)))
def test_chunks_hold_few_logits_or_the_fewest_queries(batch, heads, queries, keys):
    size = queries_at_once(batch, heads, queries, keys)
    assert 1 <= size <= queries
    assert size in (queries, 16) or batch * heads * keys * size <= 2**26


def test_memory_grows_with_the_length_of_a_text_and_not_with_its_square():
    def held(length):
        shapes = [(1, length, 16, 4), (1, length, 1, 4), (1, length, 1, 4)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

        def attended(query, key, value):
            mask = causal_mask(length)
            return multi_query_attention(query, key, value, mask).sum()

        gradient = jax.jit(jax.grad(attended, argnums=(0, 1, 2)))
        memory = gradient.lower(*arrays).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    logits = 4 * 16 * LONG**2
    assert held(LONG) < logits
    assert held(2 * LONG) < 1.5 * held(LONG)
