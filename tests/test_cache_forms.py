"""Rings and int8: how much they hold, what they cost, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.cache import Int8Array, KVCache, LayerCache, RingCache, init_cache
from tests.cache_forms import FORMS, READ, ROOM, ROWS, filled, reader
from tests.models import EXAMPLES, example, example_params, example_tokens

SAME = 1e-5
INT8 = 0.15  # of logits that reach 4, seen 0.04


# --- How much there is ----------------------------------------------------------------


def test_ring_holds_the_window_of_its_layer_and_other_layers_hold_all():
    cache = init_cache(EXAMPLES["capped"], 2, 32, ring=True)  # windows 3 and None
    assert [layer.keys.shape[2] for layer in cache.layers] == [3, 32]
    assert [type(layer) for layer in cache.layers] == [RingCache, LayerCache]
    assert (cache.windows, cache.endless, cache.capacity) == ((3,), False, 32)


def test_window_that_reaches_past_the_room_makes_no_ring():
    cache = init_cache(EXAMPLES["windowed"], 1, 3, ring=True)
    assert [layer.window for layer in cache.layers] == [None, None]


@pytest.mark.parametrize("name", ["multi_query", "capped"])
def test_cache_takes_the_bytes_that_its_shapes_tell(name):
    config, rows, room = EXAMPLES[name], 3, 40
    heads, sizes = config.num_kv_heads, config.key_size + config.value_size
    books = 4 * rows + 2 * 4 * rows * room
    slots = {False: room * config.num_layers}
    slots[True] = sum(min(w or room, room) for w in config.windows)
    for ring, count in slots.items():
        wide = init_cache(config, rows, room, ring=ring)
        assert wide.nbytes - books == rows * count * heads * sizes * 4
        narrow = init_cache(config, rows, room, "int8", ring=ring)
        assert narrow.nbytes - books == rows * count * heads * (sizes + 2 * 4)


# --- int8 -----------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-30, 30),
    size=st.sampled_from([1, 8]),
)
def test_int8_is_off_by_no_more_than_half_a_step(seed, exponent, size):
    draw = np.random.default_rng(seed)
    x = (draw.standard_normal((2, 3, size)) * 2.0**exponent).astype(np.float32)
    stored = Int8Array.of(jnp.asarray(x))
    bound = np.abs(x).max(axis=-1, keepdims=True) / 254
    error = np.abs(np.asarray(stored.astype(jnp.float32)) - x)
    assert (error <= bound * (1 + 1e-5)).all()
    assert (stored.shape, stored.dtype) == (x.shape, jnp.int8)


def test_int8_of_zeros_is_zero_and_of_nan_is_nan():
    x = jnp.asarray([[0.0, 0.0], [1.0, jnp.nan], [3.0, -4.0]])
    back = Int8Array.of(x).astype(jnp.float32)
    assert back[0].tolist() == [0, 0]
    assert bool(jnp.isnan(back[1]).all())
    assert bool(jnp.isfinite(back[2]).all())


def test_int8_keeps_every_head_to_its_own_scale():
    x = jnp.asarray([[1e-3, 2e-3], [1e3, -2e3]])
    back = Int8Array.of(x).astype(jnp.float32)
    np.testing.assert_allclose(back, x, rtol=2 / 254 * 1.001)


@pytest.mark.parametrize("name", ["grouped", "capped", "multi_head"])
def test_int8_logits_stay_near_float32_and_do_not_depend_on_chunks(name):
    tokens = example_tokens(name, ROWS, 12)
    full = example(name).apply(example_params(name), None, tokens).logits
    read = reader(name)
    whole, _ = read(tokens, example(name).init_cache(ROWS, 12, "int8"))
    cache, parts = example(name).init_cache(ROWS, 12, "int8", ring=True), []
    for start in range(0, 12, 4):
        logits, cache = read(tokens[:, start : start + 4], cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=SAME)
    error = float(jnp.abs(whole - full).max())
    assert SAME < error < INT8


@pytest.mark.parametrize("dtype", ["int7", "int32", "flaot32", jnp.uint8])
def test_dtype_that_cannot_hold_keys_is_refused_by_name(dtype):
    with pytest.raises(ValueError, match=r"unknown dtype .*Allowed: bfloat16, .*int8"):
        init_cache(EXAMPLES["grouped"], 1, 4, dtype=dtype)


# --- Rings ----------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 9))
def test_ring_holds_the_last_tokens_each_in_its_slot(length, window):
    orders = RingCache.orders(jnp.asarray([length]), window)[0].tolist()
    held = [order for order in orders if order >= 0]
    assert sorted(held) == list(range(max(0, length - window), length))
    assert all(order % window == slot for slot, order in enumerate(orders))


def test_endless_cache_reads_on_past_its_capacity():
    name, length = "windowed", 30
    tokens = example_tokens(name, ROWS, length)
    full = example(name).apply(example_params(name), None, tokens).logits
    cache, parts = example(name).init_cache(ROWS, 5, ring=True), []
    for start in range(0, length, 3):
        logits, cache = reader(name)(tokens[:, start : start + 3], cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=SAME)
    assert cache.lengths.tolist() == [length] * ROWS
    assert cache.overflowed.tolist() == [False] * ROWS
    # Values can be seen here, and yet there is nothing to refuse.
    example(name).apply(example_params(name), None, tokens[:, :1], cache=cache)


@pytest.mark.parametrize("name", ["capped", "windowed"])
@pytest.mark.parametrize("width", [1, 4])
def test_mask_of_pairs_means_the_same_with_rings(name, width):
    tokens = example_tokens(name, ROWS, 8)
    pairs = jnp.asarray(np.random.default_rng(1).random((ROWS, 8, 10)) < 0.6)
    logits = []
    for ring in (False, True):
        cache, parts = example(name).init_cache(ROWS, 10, ring=ring), []
        for start in range(0, 8, width):
            span = slice(start, start + width)
            part, cache = reader(name)(tokens[:, span], cache, pairs[:, span])
            parts.append(part)
        logits.append(jnp.concatenate(parts, axis=1))
    np.testing.assert_allclose(*logits, atol=SAME)
    unmasked = example(name).apply(example_params(name), None, tokens).logits
    assert float(jnp.abs(unmasked - logits[0]).max()) > 0.1


def test_ring_of_another_window_is_refused():
    cache = example("windowed").init_cache(ROWS, ROOM, ring=True)
    other = KVCache(
        tuple(
            RingCache(layer.keys[:, :, :2], layer.values[:, :, :2])
            for layer in cache.layers
        ),
        *(cache.lengths, cache.positions, cache.segment_ids),
    )
    tokens, params = example_tokens("windowed", ROWS, 1), example_params("windowed")
    message = "keep what layer 0 sees, 3 tokens back, got a ring of 2"
    with pytest.raises(ValueError, match=message):
        example("windowed").apply(params, None, tokens, cache=other)


# --- Rows, rolling back, room ---------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_rows_go_on_in_a_batch_of_another_size_as_they_were(form):
    name, _ = FORMS[form]
    cache = filled(form).rows([1, 0, 1])
    assert cache.batch_size == 3
    token = example_tokens(name, ROWS, 1, seed=5)
    logits, _ = reader(name)(token, filled(form))
    turned, _ = reader(name)(token[jnp.asarray([1, 0, 1])], cache)
    np.testing.assert_allclose(turned, logits[jnp.asarray([1, 0, 1])], atol=SAME)


@pytest.mark.parametrize("indices", [[], [2], [-1], [0.5], 1, [[0]]])
def test_rows_that_are_not_there_are_refused(indices):
    with pytest.raises(ValueError, match="indices must be"):
        filled("static").rows(indices)


@pytest.mark.parametrize("form", ["static", "int8"])
def test_cache_rolled_back_goes_on_as_if_the_rest_had_not_been_read(form):
    name, options = FORMS[form]
    tokens, kept = example_tokens(name, ROWS, READ), jnp.asarray([4, 7])
    short = jnp.arange(READ)[None] < kept[:, None]
    empty = example(name).init_cache(ROWS, ROOM, **options)
    wanted = reader(name)(tokens, empty, short)[1]
    back = filled(form).rolled_back(kept)
    assert back.lengths.tolist() == [4, 7]
    token = example_tokens(name, ROWS, 1, seed=5)
    got, truth = (reader(name)(token, cache)[0] for cache in (back, wanted))
    np.testing.assert_allclose(got, truth, atol=SAME)


def test_rolling_back_is_compiled_with_what_is_around_it():
    lengths = jnp.asarray([3, 1])
    back = jax.jit(KVCache.rolled_back)(filled("static"), lengths)
    assert back.lengths.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, READ + 1], "got 12 for row 1, which holds 11"),
        ([3], r"lengths must be one for each of 2 rows, got shape \[1\]"),
        ([-1, 3], "lengths must be >= 0, got -1"),
        ([1.0, 2.0], "lengths must be a list of whole numbers"),
    ],
)
def test_rolling_back_to_what_is_not_there_is_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        filled("static").rolled_back(lengths)


@pytest.mark.parametrize(("form", "rings"), [("ring", "0"), ("endless", "0, 1")])
def test_rings_refuse_to_roll_back_and_are_named(form, rings):
    with pytest.raises(ValueError, match=f"are layers {rings}: make the cache with"):
        filled(form).rolled_back([1, 1])


@pytest.mark.parametrize("form", FORMS)
def test_cache_with_more_room_goes_on_as_it_was(form):
    name, _ = FORMS[form]
    larger = filled(form).resized(40)
    assert larger.capacity == (ROOM if larger.endless else 40)
    token = example_tokens(name, ROWS, 1, seed=5)
    got, wanted = (reader(name)(token, c)[0] for c in (larger, filled(form)))
    np.testing.assert_allclose(got, wanted, atol=SAME)


def test_room_for_fewer_tokens_than_there_are_is_refused():
    assert filled("static").resized(READ).capacity == READ
    with pytest.raises(ValueError, match="at least 11, what a row holds"):
        filled("static").resized(READ - 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 4])
def test_call_with_a_cache_of_form_promotes_nothing_in_silence(form, width):
    name, options = FORMS[form]
    model = example(name)
    ids = jax.ShapeDtypeStruct((ROWS, width), jnp.int32)
    cache = jax.eval_shape(lambda: model.init_cache(ROWS, ROOM, **options))
    real = jax.ShapeDtypeStruct((ROWS, width), jnp.bool_)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for arguments in ({"mask": real}, {"segment_ids": ids}):

            def call(params, tokens, cache, arguments):
                out = model.apply(params, None, tokens, cache=cache, **arguments)
                return out.cache

            after = jax.eval_shape(call, model.param_shapes, ids, cache, arguments)
            assert after == cache
