"""Multi-query attention: many query heads over few key/value heads."""

from __future__ import annotations

import functools
import math
from typing import Literal, overload

import chex
import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa import kernels
from haiku_mqa._arguments import check_kv_heads
from haiku_mqa.errors import unknown_name
from haiku_mqa.ops.chunks import attend_in_chunks, queries_at_once
from haiku_mqa.ops.fused import Implementation, fused_attention, refusal
from haiku_mqa.ops.masks import broadcast_mask
from haiku_mqa.ops.numerics import dropout, wide_einsum

# Far below any logit, and finite: the difference of two of them is zero, where
# that of two infinities would be NaN. Logits are float32 whatever the inputs are.
_MASKED = -0.7 * float(np.finfo(np.float32).max)


@overload
def multi_query_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    return_weights: Literal[False] = False,
    implementation: Implementation | None = None,
) -> jax.Array: ...


@overload
def multi_query_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    return_weights: Literal[True],
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]: ...


def multi_query_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    return_weights: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attends with N query heads to K shared key/value heads.

    One key/value head is multi-query attention (Shazeer 2019, *Fast Transformer
    Decoding: One Write-Head is All You Need*), K = N is multi-head, and between
    them is grouped-query (Ainslie et al. 2023): query head n reads key/value head
    ``n // (N // K)``. No head is ever copied: the queries of a group are rows of one
    product with the head they share. Logits and softmax are float32 (or wider, where
    the inputs are). A query that may attend to nothing gets zeros, and passes no
    gradient.

    Logits that would take more than 256 MB are never held all: some queries attend
    after the others, and again for a gradient (Rabe & Staats 2021), so that memory
    grows with the length of a text and not with its square. Where weights are dropped
    or returned, all are held.

    Args:
      query: ``[B, T, N, H]``.
      key: ``[B, S, K, H]``, of the query's dtype.
      value: ``[B, S, K, v]``.
      mask: bool ``[T, S]``, ``[B, T, S]`` or ``[B, N, T, S]`` (B, N and T may be
        1), True where a query may attend; ``None`` lets all attend to all.
      scale: Factor on the logits; ``H ** -0.5`` if ``None``.
      bias: float32, added to the scaled logits; broadcasts to ``[B, N, T, S]``.
      softcap: Caps the scaled logits, c * tanh(x / c) (Gemma 2).
      dropout_rate: Share of the attention weights that is dropped.
      dropout_rng: PRNG key, needed where ``dropout_rate`` is above zero.
      return_weights: Whether the weights that were used are returned too.
      implementation: ``"xla"`` for what is written here; ``"cudnn"`` for the kernel
        that a GPU has in half precision, which never writes the logits to memory;
        ``None`` for that kernel, or on a CPU for that of ``haiku_mqa.kernels``,
        wherever it computes the same.

    Returns:
      ``[B, T, N, v]`` in the value's dtype; with ``return_weights`` also the
      weights, float32 ``[B, N, T, S]``, each row summing to one (or to zero).

    Raises:
      ValueError: K does not divide N, the mask is not boolean, or its shape fits
        neither axis order; or ``"cudnn"`` was asked for where it will not do.
      AssertionError: Shapes or dtypes of the arrays do not agree.

    Example:
      >>> q, k = jnp.ones((1, 3, 8, 16)), jnp.ones((1, 3, 1, 16))
      >>> v = jnp.arange(3.0).reshape(1, 3, 1, 1)
      >>> mask = jnp.tril(jnp.ones((3, 3), bool))
      >>> multi_query_attention(q, k, v, mask)[0, :, 0, 0]  # the mean of the past
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape_prefix([key, value], 3)
    chex.assert_equal([query.shape[0], query.shape[3]], [key.shape[0], key.shape[3]])
    batch, queries, heads, size = query.shape
    keys, kv_heads = key.shape[1:3]
    check_kv_heads(heads, kv_heads)
    if mask is not None:
        mask = broadcast_mask(mask, batch, heads, queries, keys)
    is_plain = bias is None and softcap is None and dropout_rate == 0
    if (
        implementation is None
        and is_plain
        and not return_weights
        and kernels.attend_fits(query, key, value, mask)
    ):
        return _attend_by_kernel(query, key, value, mask, scale)
    if implementation not in ("xla", "cudnn", None):
        raise unknown_name("implementation", str(implementation), ("xla", "cudnn"))
    if implementation != "xla":
        why_not = refusal(
            query,
            key,
            value,
            mask,
            has_bias=bias is not None,
            has_softcap=softcap is not None,
            has_dropout=dropout_rate > 0,
            returns_weights=return_weights,
        )
        if why_not is None:
            otherwise = functools.partial(
                multi_query_attention, scale=scale, implementation="xla"
            )
            return fused_attention(
                query, key, value, mask, scale=scale, otherwise=otherwise
            )
        if implementation == "cudnn":
            raise ValueError(f"implementation = 'cudnn' will not do: {why_not}")

    if dropout_rate > 0 and dropout_rng is None:
        raise ValueError(
            f"dropout_rng must be given where dropout_rate = {dropout_rate}"
        )
    if bias is not None:
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    plain = functools.partial(
        _attend_plainly,
        scale=1 / math.sqrt(size) if scale is None else scale,
        softcap=softcap,
        dropout_rate=dropout_rate,
        dropout_rng=dropout_rng,
    )
    if return_weights:
        output, exps, total = plain(query, key, value, mask, bias)
        return output, exps / total
    at_once = queries_at_once(batch, heads, queries, keys)
    if at_once == queries or dropout_rate > 0:  # what is dropped is drawn for all
        return plain(query, key, value, mask, bias)[0]
    return attend_in_chunks(
        lambda **arrays: plain(**arrays)[0],
        query,
        key,
        value,
        mask,
        bias,
        size=at_once,
    )


def _attend_plainly(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    *,
    scale: float,
    softcap: float | None,
    dropout_rate: float,
    dropout_rng: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns ``[B, T, N, v]``, and the softmax's numerators and their sums."""
    batch, queries, heads, _ = query.shape
    keys, kv_heads = key.shape[1:3]
    logits = wide_einsum(  # [B * K, G * T, S]
        "bth,bsh->bts", _fold(query, kv_heads), _fold(key, kv_heads)
    )
    logits = logits.reshape(batch, heads, queries, keys) * scale  # [B, N, T, S]
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    exps, total = _exponentials(logits, mask)
    if dropout_rng is not None and dropout_rate > 0:
        exps = dropout(exps, dropout_rate, dropout_rng)

    # Dividing after the product with the values is T * v divisions, not T * S.
    summed = wide_einsum(  # [B * K, G * T, v]
        "bts,bsv->btv",
        exps.reshape(batch * kv_heads, -1, keys).astype(value.dtype),
        _fold(value, kv_heads),
    )
    summed = summed.reshape(batch, heads, queries, -1).swapaxes(1, 2)  # [B, T, N, v]
    return (summed / total.swapaxes(1, 2)).astype(value.dtype), exps, total


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns how steeply each head forgets with distance.

    Follows Press et al. 2021, *Train Short, Test Long*: a geometric sequence for a
    power of two; for other counts that of the power below, then every other one of
    the power above.

    Args:
      num_heads: N.

    Returns:
      float32 ``[N]``, positive: head n adds ``-slope[n]`` per token of distance.

    Example:
      >>> alibi_slopes(4).tolist()
      [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(num_heads))

    def geometric(count: int) -> list[float]:
        return [2 ** (-8 * (n + 1) / count) for n in range(count)]

    extra = geometric(2 * power)[0::2][: num_heads - power]
    return np.array(geometric(power) + extra, dtype=np.float32)


def _fold(x: jax.Array, kv_heads: int) -> jax.Array:
    """Returns ``[B, T, N, H]`` as ``[B * K, G * T, H]``.

    So the products are plain batched ones, rows by rows: of more axes XLA makes the
    same by transposing the weights, the largest arrays there are.
    """
    batch, _, _, size = x.shape
    return x.swapaxes(1, 2).reshape(batch * kv_heads, -1, size)


def _attend_by_kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    scale: float | None,
) -> jax.Array:
    """Returns ``[B, T, N, v]``, of a mask that is alike for all heads."""
    shape = (query.shape[0], query.shape[1], key.shape[1])
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    mask = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask

    def plainly(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, scale):
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        return multi_query_attention(q, k, v, seen, scale=scale, implementation="xla")

    return kernels.attend(
        query,
        # A cache holds [B, K, S, H]; seen so again, nothing is moved.
        key.swapaxes(1, 2),
        value.swapaxes(1, 2),
        jnp.broadcast_to(mask[:, 0], shape),
        scale,
        plainly,
    )


def _exponentials(
    logits: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the softmax's numerators [B, N, T, S] and their sums [B, N, T, 1]."""
    if mask is not None:
        logits = jnp.where(mask, logits, _MASKED)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    # Where all is masked the greatest is masked too; set above it, every exponential
    # is zero, and no second pass over them with the mask is needed.
    exps = jnp.exp(logits - jnp.maximum(largest, _MASKED / 2))
    total = exps.sum(axis=-1, keepdims=True)
    return exps, jnp.where(total == 0, 1.0, total)
