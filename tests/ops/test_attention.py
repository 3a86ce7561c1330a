from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from haiku_mqa.ops import alibi_slopes, causal_mask, multi_query_attention

EQUAL = 1e-5  # float32, two ways to compute the same
HALF = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
DROPOUT_MEAN = 0.06  # of 4,000 draws, about five standard errors

B, T, S, N, H, V = 2, 5, 7, 6, 8, 3  # V is v, the size of a value head
KV_HEADS = [1, 2, 3, 6]

seeds = st.integers(0, 2**32 - 1)


def _arrays(seed: int, kv_heads: int, dtype: str = "float32") -> list[jax.Array]:
    draw = np.random.default_rng(seed)
    shapes = [(B, T, N, H), (B, S, kv_heads, H), (B, S, kv_heads, V)]
    return [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes]


def _mask(seed: int, shape: tuple[int, ...] = (B, N, T, S)) -> jax.Array:
    """Returns a random mask by which every query sees at least one key."""
    draw = np.random.default_rng(seed)
    mask = draw.random(shape) < 0.5
    np.put_along_axis(mask, draw.integers(0, S, (*shape[:-1], 1)), True, axis=-1)
    return jnp.asarray(mask)


attend = jax.jit(multi_query_attention)


def _plain(q, k, v, mask, *, scale=None, softcap=None, bias=0.0) -> np.ndarray:
    """Attention in float64, one head at a time."""
    q, k, v, mask = (np.asarray(x, np.float64) for x in (q, k, v, mask))
    group = q.shape[2] // k.shape[2]
    heads = []
    for head in range(q.shape[2]):
        keys, values = k[:, :, head // group], v[:, :, head // group]
        logits = np.einsum("bth,bsh->bts", q[:, :, head], keys)
        logits = logits * (scale or 1 / math.sqrt(q.shape[-1]))
        logits = softcap * np.tanh(logits / softcap) if softcap else logits
        logits = logits + np.broadcast_to(bias, mask.shape)[:, head]
        weights = np.exp(logits - logits.max(-1, keepdims=True)) * mask[:, head]
        weights = weights / weights.sum(-1, keepdims=True)
        heads.append(np.einsum("bts,bsv->btv", weights, values))
    return np.stack(heads, axis=2)


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@given(seed=seeds)
def test_attention_equals_the_plain_loop_over_heads(kv_heads, seed):
    q, k, v = _arrays(seed, kv_heads)
    mask = _mask(seed)
    np.testing.assert_allclose(attend(q, k, v, mask), _plain(q, k, v, mask), atol=EQUAL)


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@given(seed=seeds)
def test_attention_equals_that_of_jax_with_the_same_mask(kv_heads, seed):
    q, k, v = _arrays(seed, kv_heads)
    wide = jnp.concatenate([v, v, v[..., :2]], axis=-1)  # JAX wants v = H
    mask = _mask(seed)
    expected = jax.nn.dot_product_attention(q, k, wide, mask=mask)[..., :V]
    np.testing.assert_allclose(attend(q, k, v, mask), expected, atol=EQUAL)


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@given(seed=seeds)
def test_grouped_heads_are_their_heads_repeated(kv_heads, seed):
    q, k, v = _arrays(seed, kv_heads)
    repeat = functools.partial(jnp.repeat, repeats=N // kv_heads, axis=2)
    mask = _mask(seed)
    np.testing.assert_allclose(
        attend(q, k, v, mask), attend(q, repeat(k), repeat(v), mask), atol=EQUAL
    )


@pytest.mark.parametrize("kv_heads", [2, 3])
def test_grouped_heads_are_not_their_heads_tiled(kv_heads):
    q, k, v = _arrays(0, kv_heads)
    tiled = [jnp.tile(x, (1, 1, N // kv_heads, 1)) for x in (k, v)]
    difference = jnp.abs(attend(q, k, v) - attend(q, *tiled)).max()
    assert float(difference) > 0.1


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@given(seed=seeds)
def test_gradients_of_keys_and_values_are_summed_over_their_group(kv_heads, seed):
    q, k, v = _arrays(seed, kv_heads)
    gradients = _gradients(q, k, v, _mask(seed))
    repeat = functools.partial(jnp.repeat, repeats=N // kv_heads, axis=2)
    dq, dk, dv = _gradients(q, repeat(k), repeat(v), _mask(seed))
    summed = [
        dx.reshape(B, S, kv_heads, N // kv_heads, -1).sum(axis=3) for dx in (dk, dv)
    ]
    for got, expected in zip(gradients, [dq, *summed], strict=True):
        np.testing.assert_allclose(got, expected, atol=EQUAL)


@jax.jit
def _gradients(q, k, v, mask):
    weights = np.random.default_rng(0).standard_normal((B, T, N, V))

    def loss(q, k, v):
        out = multi_query_attention(q, k, v, mask).astype(jnp.float32)
        return (out * weights.astype(np.float32)).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)


def test_gradients_are_right_to_second_order_in_float64():
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        shapes = [(1, 4, 1, 3), (1, 4, 1, 3), (1, 4, 1, 2)]
        q, k, v = (jnp.asarray(draw.standard_normal(shape)) for shape in shapes)
        mask = causal_mask(4)
        assert multi_query_attention(q, k, v, mask).dtype == jnp.float64
        check_grads(
            lambda q, k, v: multi_query_attention(q, k, v, mask),
            (q, k, v),
            order=2,
            atol=EQUAL,
            rtol=EQUAL,
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fully_masked_query_gets_zeros_and_passes_no_gradient(dtype):
    q, k, v = _arrays(0, 2, dtype)
    mask = _mask(0).at[:, :, 2].set(False)
    out = attend(q, k, v, mask)
    assert bool((out[:, 2] == 0).all())
    assert bool((out[:, 1] != 0).any())
    dq, dk, dv = _gradients(q, k, v, mask)
    assert bool((dq[:, 2] == 0).all())
    assert all(bool(jnp.isfinite(dx).all()) for dx in (dq, dk, dv))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_masked_batch_gives_zeros_and_zero_gradients(dtype):
    q, k, v = _arrays(0, 1, dtype)
    mask = jnp.zeros((T, S), bool)
    assert bool((attend(q, k, v, mask) == 0).all())
    assert all(bool((dx == 0).all()) for dx in _gradients(q, k, v, mask))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_forbidden_keys_have_no_influence_at_all(dtype):
    q, k, v = _arrays(0, 2, dtype)
    mask = jnp.ones((T, S), bool).at[:, 4:].set(False)
    other = attend(q, k.at[:, 4:].set(77), v.at[:, 4:].set(-99), mask)
    np.testing.assert_array_equal(
        attend(q, k, v, mask).astype(jnp.float32), other.astype(jnp.float32)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_in_half_precision_stays_near_float32(dtype):
    q, k, v = _arrays(0, 2)
    halves = [x.astype(dtype) for x in (q, k, v)]
    out = attend(*halves, _mask(0))
    assert out.dtype == dtype
    np.testing.assert_allclose(
        out.astype(jnp.float32), attend(q, k, v, _mask(0)), atol=HALF[dtype]
    )


def test_float16_logits_beyond_its_range_do_not_overflow():
    # 64 * 300 * 300 is far past float16's 65,504, and infinities would give NaN.
    q = jnp.full((1, 1, 1, 64), 300, jnp.float16)
    k = jnp.stack([q[0, 0, 0] * 0.99, q[0, 0, 0]])[None, :, None]
    v = jnp.asarray([1.0, 2.0], jnp.float16).reshape(1, 2, 1, 1)
    out = attend(q, k, v)
    assert out.ravel().tolist() == [2.0]


@pytest.mark.parametrize("option", ["scale", "softcap", "bias"])
def test_attention_option_equals_the_plain_loop(option):
    q, k, v = _arrays(0, 3)
    bias = np.random.default_rng(1).standard_normal((B, N, T, S)).astype(np.float32)
    options = {option: {"scale": 0.9, "softcap": 1.5, "bias": bias}[option]}
    out = multi_query_attention(q, k, v, _mask(0), **options)
    expected = _plain(q, k, v, _mask(0), **options)
    np.testing.assert_allclose(out, expected, atol=EQUAL)
    assert not np.allclose(out, attend(q, k, v, _mask(0)), atol=1e-2)


def test_softcap_caps_the_scaled_logits():
    q, k, v = _arrays(0, 2)
    mask = _mask(0)
    out = multi_query_attention(100 * q, k, v, mask, scale=0.5, softcap=1.5)
    expected = _plain(100 * q, k, v, mask, scale=0.5, softcap=1.5)
    np.testing.assert_allclose(out, expected, atol=EQUAL)


def test_weights_are_those_used_and_sum_to_one_or_to_zero():
    q, k, v = _arrays(0, 2)
    mask = _mask(0).at[0, :, 2].set(False)
    out, weights = multi_query_attention(q, k, v, mask, return_weights=True)
    assert (weights.shape, weights.dtype) == ((B, N, T, S), jnp.float32)
    assert bool((jnp.where(mask, 0, weights) == 0).all())
    expected = jnp.ones((B, N, T)).at[0, :, 2].set(0)
    np.testing.assert_allclose(weights.sum(axis=-1), expected, atol=EQUAL)
    values = jnp.repeat(v, N // 2, axis=2)
    np.testing.assert_allclose(
        jnp.einsum("bnts,bsnv->btnv", weights, values), out, atol=EQUAL
    )


def test_dropout_drops_its_share_and_keeps_the_mean():
    rngs = jax.random.split(jax.random.key(0), 4000)
    q, k, v = (x[:1] for x in _arrays(0, 1))

    @jax.jit
    @jax.vmap
    def dropped(rng):
        return multi_query_attention(
            q, k, v, dropout_rate=0.3, dropout_rng=rng, return_weights=True
        )

    out, weights = dropped(rngs)
    assert abs(float((weights == 0).mean()) - 0.3) < 0.005
    np.testing.assert_allclose(out.mean(axis=0), attend(q, k, v), atol=DROPOUT_MEAN)


def test_dropout_needs_an_rng():
    with pytest.raises(ValueError, match=r"dropout_rng must be given .* = 0\.1"):
        multi_query_attention(*_arrays(0, 1), dropout_rate=0.1)


@pytest.mark.parametrize("kv_heads", [4, 5, 12])
def test_attention_refuses_kv_heads_that_do_not_divide_the_query_heads(kv_heads):
    with pytest.raises(
        ValueError, match=f"num_kv_heads must divide num_heads = 6, got {kv_heads}"
    ):
        multi_query_attention(*_arrays(0, kv_heads))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_attention_refuses_a_mask_that_is_not_boolean(dtype):
    additive = jnp.where(_mask(0), 0, -1_000_000_000).astype(dtype)
    with pytest.raises(ValueError, match="mask must be boolean"):
        multi_query_attention(*_arrays(0, 1), additive)


@pytest.mark.parametrize("shape", [(S, T), (B, S, T), (B, 1, S, T), (B, T), (B, S)])
def test_attention_refuses_a_mask_laid_along_the_wrong_axes(shape):
    with pytest.raises(ValueError, match="mask must be"):
        multi_query_attention(*_arrays(0, 1), jnp.ones(shape, bool))


def test_attention_refuses_arrays_that_do_not_belong_together():
    q, k, v = _arrays(0, 2)
    for wrong in ((q[0], k, v), (q, k[:, 1:], v), (q, k[..., 1:], v), (q[:1], k, v)):
        with pytest.raises(AssertionError):
            multi_query_attention(*wrong)


# From the paper's own code, https://github.com/ofirpress/attention_with_linear_biases
ALIBI = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    8: [2.0**-n for n in range(1, 9)],
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    12: [2.0**-n for n in range(1, 9)] + [2.0 ** -(n + 0.5) for n in range(4)],
}


@pytest.mark.parametrize("heads", ALIBI)
def test_alibi_slopes_are_those_of_the_paper(heads):
    np.testing.assert_allclose(alibi_slopes(heads), ALIBI[heads], rtol=EQUAL)


@given(st.integers(1, 200))
def test_alibi_slopes_are_positive_different_and_one_for_each_head(heads):
    slopes = alibi_slopes(heads)
    assert slopes.dtype == np.float32
    assert len(set(slopes.tolist())) == len(slopes) == heads
    assert (slopes > 0).all()
    assert (slopes < 1).all()
