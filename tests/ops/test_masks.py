from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.ops import causal_mask
from haiku_mqa.ops.masks import broadcast_mask, window_mask

B, N, T, S = 2, 3, 4, 5


def test_causal_mask_is_the_lower_triangle():
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    mask = causal_mask(4)
    assert mask.dtype == jnp.bool_
    assert mask.astype(int).tolist() == expected


def test_causal_mask_of_one_token_lets_it_see_itself():
    assert causal_mask(1).tolist() == [[True]]


@pytest.mark.parametrize("seq_len", [0, -1, 2.0, True, "4", None])
def test_causal_mask_refuses_a_length_that_is_none(seq_len):
    with pytest.raises(ValueError, match="seq_len must be a whole number >= 1, got"):
        causal_mask(seq_len)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, ["1000", "0100", "0010", "0001"]),
        (2, ["1000", "1100", "0110", "0011"]),
        (3, ["1000", "1100", "1110", "0111"]),
        (9, ["1000", "1100", "1110", "1111"]),
    ],
)
def test_window_mask_with_causality_keeps_a_band(window, expected):
    behind = jnp.arange(4)[:, None] - jnp.arange(4)[None, :]
    band = causal_mask(4) & window_mask(behind, window)
    assert ["".join(map(str, row)) for row in band.astype(int).tolist()] == expected


def test_window_mask_counts_from_the_query_in_a_cache():
    behind = jnp.asarray([6]) - jnp.arange(8)  # the seventh token of eight slots
    seen = window_mask(behind, 3) & (behind >= 0)
    assert seen.astype(int).tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


def test_window_mask_refuses_distances_that_are_not_whole():
    with pytest.raises(AssertionError):
        window_mask(jnp.zeros((2, 2)), 1)


@pytest.mark.parametrize(
    "shape",
    [
        *[(T, S), (1, S), (B, T, S), (1, T, S), (B, 1, S), (B, N, T, S)],
        *[(1, N, T, S), (B, 1, T, S), (B, N, 1, S), (B, 1, 1, S), (1, 1, T, S)],
    ],
)
def test_broadcast_mask_gives_four_axes_that_say_the_same(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    spread = broadcast_mask(jnp.asarray(mask), B, N, T, S)
    assert spread.ndim == 4
    expected = mask[:, None] if mask.ndim == 3 else mask
    np.testing.assert_array_equal(
        np.broadcast_to(spread, (B, N, T, S)), np.broadcast_to(expected, (B, N, T, S))
    )


def _can_be_meant(shape: tuple[int, ...]) -> bool:
    axes = {2: (T, S), 3: (B, T, S), 4: (B, N, T, S)}.get(len(shape))
    return (
        axes is not None
        and shape[-1] == S
        and all(size in (1, axis) for size, axis in zip(shape, axes, strict=True))
    )


@given(st.lists(st.integers(1, 6), min_size=0, max_size=5).map(tuple))
def test_broadcast_mask_takes_a_shape_that_can_be_meant_and_refuses_all_others(shape):
    mask = jnp.asarray(np.ones(shape, bool))
    if _can_be_meant(shape):
        assert broadcast_mask(mask, B, N, T, S).shape[-1] == S
    else:
        with pytest.raises(ValueError, match=r"mask must be \[T, S\].* got shape"):
            broadcast_mask(mask, B, N, T, S)


@pytest.mark.parametrize("shape", [(S, T), (B, S, T), (B, N, S, T)])
def test_broadcast_mask_refuses_a_transposed_mask(shape):
    with pytest.raises(ValueError, match="T = 4, S = 5"):
        broadcast_mask(jnp.ones(shape, bool), B, N, T, S)


@pytest.mark.parametrize("shape", [(T, 1), (B, T, 1), (B, 1, T, 1), (B, S, 1)])
def test_broadcast_mask_refuses_padding_along_the_query_axis(shape):
    with pytest.raises(ValueError, match="got shape"):
        broadcast_mask(jnp.ones(shape, bool), B, N, T, S)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "uint8"])
def test_broadcast_mask_refuses_a_mask_that_is_not_boolean(dtype):
    with pytest.raises(ValueError, match=f"mask must be boolean .*{dtype}.*>= 0"):
        broadcast_mask(jnp.ones((T, S), dtype), B, N, T, S)
