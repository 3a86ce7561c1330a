"""The laws that attention over shared key/value heads obeys."""

from __future__ import annotations

import functools
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.test_util import check_grads

from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import CLOSE, INF, gap, only

B, T, S, N, H, V = 2, 5, 7, 6, 4, 3  # shape letters; V is the value size here
KV_HEADS = (1, 2, 3, 6)

Attention = Callable[..., jax.Array]
Case = tuple[int, int]  # a seed, and K

_cases = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(KV_HEADS))


def _inputs(case: Case) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns query, key, value and a mask with no empty row."""
    seed, kv_heads = case
    draw = np.random.default_rng(seed)
    q, k, v = (
        jnp.asarray(draw.standard_normal(shape), jnp.float32)
        for shape in ((B, T, N, H), (B, S, kv_heads, H), (B, S, kv_heads, V))
    )
    mask = draw.random((B, N, T, S)) < 0.6
    mask[..., 0] |= ~mask.any(axis=-1)
    return q, k, v, jnp.asarray(mask)


@functools.lru_cache(maxsize=64)
def _compiled(attention: Attention) -> Attention:
    return jax.jit(lambda q, k, v, mask: attention(q, k, v, mask))


@functools.lru_cache(maxsize=64)
def _unmasked(attention: Attention) -> Attention:
    return jax.jit(lambda q, k, v: attention(q, k, v, None))


@functools.lru_cache(maxsize=64)
def _derived(attention: Attention) -> Callable[..., tuple[jax.Array, ...]]:
    """Gradients of some loss with respect to query, key and value."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sin(attention(q, k, v, mask)).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def _repeated(attention: Attention, case: Case) -> float:
    """Each head copied to its group, in order: multi-head attention."""
    q, k, v, mask = _inputs(case)
    group = N // case[1]
    many = _compiled(attention)(
        q, jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2), mask
    )
    return gap(_compiled(attention)(q, k, v, mask), many)


def _plain(attention: Attention, case: Case) -> float:
    """Against loops in float64 that say what attention is."""
    q, k, v, mask = (np.asarray(x) for x in _inputs(case))
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out = np.zeros((B, T, N, V))
    for b, t, n in np.ndindex(B, T, N):
        seen = np.flatnonzero(mask[b, n, t])
        shared = n // (N // case[1])
        scores = k[b, seen, shared] @ q[b, t, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, seen, shared] / weights.sum()
    return gap(_compiled(attention)(*_inputs(case)), out)


def _jax_attention(attention: Attention, case: Case) -> float:
    """Against JAX's own, of one size for keys and values."""
    q, k, _, mask = _inputs(case)
    values = jnp.flip(k, axis=1)
    wanted = jax.nn.dot_product_attention(q, k, values, mask=mask)
    return gap(_compiled(attention)(q, k, values, mask), wanted)


def _haiku_attention(attention: Attention, seed: int) -> float:
    """Against ``hk.MultiHeadAttention``, its projections taken from its parameters."""
    draw = np.random.default_rng(seed)
    x = jnp.asarray(draw.standard_normal((B, T, N * H)), jnp.float32)
    mask = jnp.tril(jnp.ones((1, 1, T, T), bool))
    pair = _haiku_pair()
    params = pair.init(jax.random.key(seed), x, mask)
    heads = {
        name: (x @ params[f"mha/{name}"]["w"] + params[f"mha/{name}"]["b"])
        for name in ("query", "key", "value")
    }
    q, k, v = (heads[name].reshape(B, T, N, -1) for name in ("query", "key", "value"))
    flat = _compiled(attention)(q, k, v, mask).reshape(B, T, -1)
    got = flat @ params["mha/linear"]["w"] + params["mha/linear"]["b"]
    return gap(got, pair.apply(params, x, mask))


@functools.lru_cache(maxsize=1)
def _haiku_pair() -> hk.Transformed:
    def forward(x: jax.Array, mask: jax.Array) -> jax.Array:
        init = hk.initializers.VarianceScaling(1.0)
        module = hk.MultiHeadAttention(N, H, w_init=init, value_size=V, name="mha")
        return module(x, x, x, mask)

    return hk.without_apply_rng(hk.transform(forward))


def _gradients(attention: Attention, case: Case) -> float:
    """What a shared head learns is the sum of what its copies would."""
    q, k, v, mask = _inputs(case)
    group = N // case[1]

    many = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    gradients = _derived(attention)(q, k, v, mask)[1:]
    copies = _derived(attention)(q, *many, mask)[1:]
    summed = [g.reshape(B, S, case[1], group, -1).sum(axis=3) for g in copies]
    return max(gap(a, b) for a, b in zip(gradients, summed, strict=True))


def _empty_row(attention: Attention, case: Case) -> float:
    """A query that may see nothing gets zeros, and gradients stay finite."""
    q, k, v, mask = _inputs(case)
    empty = case[0] % T
    mask = mask.at[:, :, empty].set(False)
    out = _compiled(attention)(q, k, v, mask)
    gradients = _derived(attention)(q, k, v, mask)
    finite = all(bool(jnp.isfinite(g).all()) for g in gradients)
    still = not bool(gradients[0][:, empty].any())
    return gap(out[:, empty], 0.0) if finite and still else INF


def _key_order(attention: Attention, case: Case) -> float:
    """Keys have no order of their own: permuting them, with the mask, is nothing."""
    q, k, v, mask = _inputs(case)
    order = np.random.default_rng(case[0]).permutation(S)
    moved = _compiled(attention)(q, k[:, order], v[:, order], mask[..., order])
    return gap(moved, _compiled(attention)(q, k, v, mask))


def _query_order(attention: Attention, case: Case) -> float:
    """Without a mask, permuting queries permutes outputs."""
    q, k, v, _ = _inputs(case)
    order = np.random.default_rng(case[0]).permutation(T)
    unmasked = _unmasked(attention)
    return gap(unmasked(q[:, order], k, v), unmasked(q, k, v)[:, order])


def _convexity(attention: Attention, case: Case) -> float:
    """An output lies between the least and the largest value it may see."""
    q, k, v, mask = _inputs(case)
    out = np.asarray(_compiled(attention)(q, k, v, mask))
    values = np.repeat(np.asarray(v), N // case[1], axis=2)
    values = values.transpose(0, 2, 1, 3)[:, :, None]  # [B, N, 1, S, V]
    seen = np.asarray(mask)[..., None]
    low = np.where(seen, values, INF).min(axis=3).swapaxes(1, 2)
    high = np.where(seen, values, -INF).max(axis=3).swapaxes(1, 2)
    return float(max((low - out).max(), (out - high).max(), 0.0))


def _half_precision(attention: Attention, case: Case) -> float:
    """Large queries and keys in float16 overflow nothing."""
    q, k, v, mask = _inputs(case)
    q, k, v = ((100 * x).astype(jnp.float16) for x in (q, k, v))
    out = np.asarray(_compiled(attention)(q, k, v, mask), np.float64)
    return 0.0 if np.isfinite(out).all() else INF


def _softmax_precision(attention: Attention, case: Case) -> float:
    """bfloat16 inputs: the softmax is no coarser than its inputs."""
    q, k, v, mask = _inputs(case)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    got = _compiled(attention)(q, k, v, mask).astype(jnp.float32)
    return gap(got, _compiled(attention)(*wide, mask))


def _second_order(attention: Attention, case: Case) -> float:
    """Derivatives to second order agree with finite differences, in float64."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(case[0])
        q, k, v = (draw.standard_normal((1, 4, heads, 3)) for heads in (2, 1, 1))
        mask = np.tril(np.ones((4, 4), bool))
        function = jax.jit(lambda q, k, v: attention(q, k, v, jnp.asarray(mask)))
        try:
            check_grads(function, (q, k, v), order=2, atol=CLOSE, rtol=CLOSE)
        except AssertionError:
            return INF
    return 0.0


ATTENTION_LAWS: tuple[Law, ...] = (
    Law(
        name="repeat",
        statement="K shared heads are multi-head attention with each head repeated.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_repeated,
    ),
    Law(
        name="definition",
        statement="Attention is what its formula says.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_plain,
    ),
    Law(
        name="jax.nn",
        statement="Equals jax.nn.dot_product_attention with the same mask.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_jax_attention,
    ),
    Law(
        name="hk.MultiHeadAttention",
        statement="With a key/value head for each query head it is Haiku's.",
        tolerance=CLOSE,
        cases=only(st.integers(0, 2**31 - 1)),
        error=_haiku_attention,
    ),
    Law(
        name="shared gradients",
        statement="A shared head's gradient is the sum over its group.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_gradients,
        most=25,
    ),
    Law(
        name="empty row",
        statement="A query that may see nothing gets zeros and finite gradients.",
        tolerance=0,
        cases=only(_cases),
        error=_empty_row,
        most=25,
    ),
    Law(
        name="key order",
        statement="Permuting keys, values and mask changes nothing.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_key_order,
    ),
    Law(
        name="query order",
        statement="Without a mask, permuting queries permutes outputs.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_query_order,
    ),
    Law(
        name="convexity",
        statement="An output lies between the values it may see.",
        tolerance=CLOSE,
        cases=only(_cases),
        error=_convexity,
    ),
    Law(
        name="float16",
        statement="Logits accumulate in float32: nothing overflows.",
        tolerance=0,
        cases=only(_cases),
        error=_half_precision,
    ),
    Law(
        name="softmax precision",
        statement="In bfloat16 the softmax is float32 still.",
        tolerance=0.03,
        cases=only(_cases),
        error=_softmax_precision,
    ),
    Law(
        name="second order",
        statement="Second derivatives agree with finite differences.",
        tolerance=0,
        cases=only(_cases),
        error=_second_order,
        most=2,
    ),
)
