from __future__ import annotations

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.cache import KVCache, LayerCache, init_cache
from haiku_mqa.cache.layers import _put_one, _put_one_straight
from tests.models import (
    BATCH,
    EXAMPLES,
    LENGTH,
    example,
    example_logits,
    example_params,
    example_tokens,
)

SAME = 1e-5
NAME, CAPACITY = "grouped", 9


@jax.jit
def _apply(params, tokens, real, cache):
    out = example(NAME).apply(params, None, tokens, mask=real, cache=cache)
    return out.logits, out.cache


_step = functools.partial(_apply, example_params(NAME))


@functools.cache
def _filled() -> KVCache:
    """Returns a cache with four tokens in the first row and seven in the second."""
    lengths = jnp.asarray([[4], [LENGTH]])
    real = jnp.arange(LENGTH)[None] < lengths
    return _step(example_tokens(NAME), real, _empty())[1]


def _empty(capacity: int = CAPACITY) -> KVCache:
    return example(NAME).init_cache(BATCH, capacity)


@pytest.mark.parametrize("name", EXAMPLES)
def test_cache_has_heads_and_dtype_of_its_config(name):
    config = EXAMPLES[name]
    cache = init_cache(config, BATCH, CAPACITY)
    assert len(cache.layers) == config.num_layers
    for layer in cache.layers:
        rows = (BATCH, config.num_kv_heads, CAPACITY)
        assert layer.keys.shape == (*rows, config.key_size)
        assert layer.values.shape == (*rows, config.value_size)
        assert {layer.keys.dtype.name, layer.values.dtype.name} == {config.dtype}
    assert (cache.batch_size, cache.capacity) == (BATCH, CAPACITY)
    assert cache.lengths.tolist() == [0] * BATCH
    assert cache.overflowed.tolist() == [False] * BATCH


def test_cache_dtype_can_be_chosen():
    cache = init_cache(EXAMPLES[NAME], 1, 4, dtype=jnp.bfloat16)
    assert {x.dtype.name for x in jax.tree.leaves(cache.layers)} == {"bfloat16"}


def test_cache_of_a_model_is_by_default_as_long_as_the_model_allows():
    assert example("learned").init_cache(1).capacity == 24


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (-1, 4)])
def test_cache_without_room_is_refused(sizes):
    with pytest.raises(ValueError, match="must be a whole number >= 1, got"):
        init_cache(EXAMPLES[NAME], *sizes)


def test_cache_holds_tokens_from_slot_zero_whatever_the_padding():
    tokens = example_tokens(NAME)[:, :4]
    left = jnp.pad(tokens, ((0, 0), (3, 0)))
    apart = jnp.stack([jnp.arange(LENGTH) >= 3] * BATCH)
    packed = _step(left, apart, _empty())[1]
    plain = _step(example_tokens(NAME), apart[:, ::-1], _empty())[1]
    assert packed.lengths.tolist() == plain.lengths.tolist() == [4, 4]
    for got, expected in zip(packed.layers, plain.layers, strict=True):
        np.testing.assert_allclose(got.keys, expected.keys, atol=SAME)
        assert bool((got.keys[:, :, 4:] == 0).all())
        assert bool((got.values[:, :, 4:] == 0).all())


def test_cache_is_not_changed_by_the_call_that_reads_it():
    before = jax.tree.map(np.array, _filled())
    token = example_tokens(NAME)[:, :1]
    _step(jnp.tile(token, (1, LENGTH)), jnp.ones((BATCH, LENGTH), bool), _filled())
    jax.tree.map(np.testing.assert_array_equal, _filled(), before)


def test_cache_keeps_positions_and_segments_of_its_tokens():
    positions = jnp.asarray([[3, 5, 6], [0, 1, 9]])
    segments = jnp.asarray([[0, 1, 1], [2, 2, 5]])
    out = example(NAME).apply(
        example_params(NAME),
        None,
        example_tokens(NAME)[:, :3],
        positions=positions,
        segment_ids=segments,
        cache=_empty(),
    )
    assert out.cache.positions[:, :3].tolist() == positions.tolist()
    assert out.cache.segment_ids[:, :3].tolist() == segments.tolist()


def test_cache_rows_can_be_permuted_and_taken_out_as_arrays():
    order = jnp.asarray([1, 0])
    turned = jax.tree.map(lambda leaf: leaf[order], _filled())
    tokens = jnp.tile(example_tokens(NAME)[:, :1], (1, LENGTH))
    first = jnp.arange(LENGTH)[None] < jnp.ones((BATCH, 1))
    logits, after = _step(tokens, first, _filled())
    turned_logits, turned_after = _step(tokens[order], first, turned)
    np.testing.assert_array_equal(turned_logits, logits[order])
    np.testing.assert_array_equal(turned_after.lengths, after.lengths[order])


def test_cache_survives_pickle_and_a_round_trip_through_its_leaves():
    leaves, tree = jax.tree.flatten(_filled())
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    for copy in (
        jax.tree.unflatten(tree, leaves),
        pickle.loads(pickle.dumps(_filled())),
    ):
        assert isinstance(copy, KVCache)
        assert jax.tree.structure(copy) == tree
        jax.tree.map(np.testing.assert_array_equal, copy, _filled())


def test_cache_leaves_are_named_by_their_paths():
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(_empty())
    ]
    assert paths == [
        *[f"layers/{n}/{part}" for n in range(2) for part in ("keys", "values")],
        *["lengths", "positions", "segment_ids"],
    ]


def test_cache_is_scanned_over_as_a_carry():
    @jax.jit
    def decode(params, tokens, cache):
        def step(cache, token):
            out = example(NAME).apply(params, None, token[:, None], cache=cache)
            return out.cache, out.logits[:, 0]

        return jax.lax.scan(step, cache, tokens.T)

    cache, logits = decode(example_params(NAME), example_tokens(NAME), _empty())
    np.testing.assert_allclose(logits.swapaxes(0, 1), example_logits(NAME), atol=SAME)
    assert cache.lengths.tolist() == [LENGTH] * BATCH


def test_write_drops_what_has_no_slot_and_keeps_the_rest():
    layer = LayerCache(jnp.zeros((1, 1, 3, 2)), jnp.zeros((1, 1, 3, 2)))
    new = jnp.arange(1.0, 9.0).reshape(1, 4, 1, 2)
    written = layer.write(jnp.asarray([[1, 3, 2, 7]]), new, -new)
    assert written.keys[0, 0].tolist() == [[0, 0], [1, 2], [5, 6]]
    assert written.values[0, 0].tolist() == [[0, 0], [-1, -2], [-5, -6]]


@pytest.mark.parametrize("slot", [0, 2, 3, 9])
def test_one_token_is_written_without_a_branch_as_it_is_with_one(slot):
    old = jnp.arange(1.0, 7.0).reshape(1, 1, 3, 2)
    new = jnp.asarray([[[[-1.0, -2.0]]]])
    expected = old.at[0, 0, slot].set(new[0, 0, 0], mode="drop")
    slot = jnp.asarray(slot)
    np.testing.assert_array_equal(_put_one_straight(old, new, slot), expected)
    np.testing.assert_array_equal(_put_one(old, slot[None, None], new), expected)


def test_cache_past_its_end_is_an_error_where_lengths_can_be_seen():
    message = r"room for 9 tokens, and row 1 needs 10: 7 stored and 3 new"
    with pytest.raises(ValueError, match=message):
        example(NAME).apply(
            example_params(NAME), None, example_tokens(NAME)[:, :3], cache=_filled()
        )


def test_padding_needs_no_room_in_the_cache():
    real = jnp.asarray([[True] * 3, [True, True, False]])
    out = example(NAME).apply(
        example_params(NAME),
        None,
        example_tokens(NAME)[:, :3],
        mask=real,
        cache=_filled(),
    )
    assert out.cache.lengths.tolist() == [7, 9]
    assert not bool(out.cache.overflowed.any())


@given(
    new=st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)),
    seed=st.integers(0, 2**32 - 1),
)
def test_cache_past_its_end_under_jit_is_flagged_and_keeps_its_history(new, seed):
    before = _filled()
    real = jnp.arange(LENGTH)[None] < jnp.asarray(new)[:, None]
    _, after = _step(example_tokens(NAME, seed=seed), real, before)
    lengths = [4 + new[0], LENGTH + new[1]]
    assert after.lengths.tolist() == lengths
    assert after.overflowed.tolist() == [length > CAPACITY for length in lengths]
    for old, layer in zip(before.layers, after.layers, strict=True):
        for row, length in enumerate([4, LENGTH]):
            np.testing.assert_array_equal(
                layer.keys[row, :, :length], old.keys[row, :, :length]
            )
            np.testing.assert_array_equal(
                layer.values[row, :, :length], old.values[row, :, :length]
            )
