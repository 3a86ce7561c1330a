"""Attention in one kernel, where a GPU has one: logits are never written to memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Implementation = Literal["xla", "cudnn"]

_DTYPES = ("bfloat16", "float16")
_LEAST_QUERIES = 16  # of fewer the cache is what is read, and logits are few


def refusal(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    has_bias: bool = False,
    has_softcap: bool = False,
    has_dropout: bool = False,
    returns_weights: bool = False,
) -> str | None:
    """Returns why cuDNN's attention would not do, or ``None`` where it would.

    It computes what ``multi_query_attention`` does, with the sums of softmax in
    float32, but never has the weights, and rounds what is added to logits.

    Args:
      query: ``[B, T, N, H]``; likewise all that is not named here as
        ``multi_query_attention``. Values are not looked at.
      key: ``[B, S, K, H]``.
      value: ``[B, S, K, v]``.
      mask: bool ``[B or 1, N or 1, T or 1, S]``.
      has_bias: Whether something is added to the logits.
      has_softcap: Whether logits are capped.
      has_dropout: Whether weights are dropped.
      returns_weights: Whether somebody wants to see the weights.

    Example:
      >>> q, k = jnp.ones((1, 64, 8, 16)), jnp.ones((1, 64, 1, 16))
      >>> refusal(q, k, k)
      'it is for a GPU, and jax runs on cpu'
    """
    if jax.default_backend() != "gpu":
        return f"it is for a GPU, and jax runs on {jax.default_backend()}"
    queries, keys = query.shape[1], key.shape[1]
    reasons = {
        "it adds a bias in the query's dtype": has_bias,
        "it has no softcap": has_softcap,
        "it drops no weights": has_dropout,
        "it returns no weights": returns_weights,
        f"it computes in {' or '.join(_DTYPES)}, and the query is {query.dtype}": (
            query.dtype.name not in _DTYPES
        ),
        f"keys and values are of unlike sizes, {key.shape[3]} and {value.shape[3]}": (
            key.shape[3] != value.shape[3]
        ),
        f"it is for {_LEAST_QUERIES} queries and more, and there are {queries}": (
            queries < _LEAST_QUERIES
        ),
        f"it wants even numbers of queries and keys, and there are {queries} and "
        f"{keys}": bool(queries % 2 or keys % 2),
    }
    for reason, holds in reasons.items():
        if holds:
            return reason
    try:  # what else it wants depends on its version and on the GPU: jax knows
        jax.eval_shape(
            functools.partial(dot_product_attention, implementation="cudnn"),
            *(query, key, value, mask),
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error)
    return None


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
    scale: float | None,
    otherwise: Callable[..., jax.Array],
) -> jax.Array:
    """Attends by cuDNN where a program is compiled for CUDA.

    Args:
      query: As ``refusal`` took it; likewise key, value and mask.
      key: See there.
      value: See there.
      mask: See there.
      scale: Factor on the logits; ``H ** -0.5`` if ``None``.
      otherwise: Called with query, key, value and mask where a program is compiled
        for something else: a process with a GPU has a CPU too.

    Returns:
      ``[B, T, N, H]`` in the query's dtype.
    """
    by_cudnn = functools.partial(
        dot_product_attention, scale=scale, implementation="cudnn"
    )
    arrays = (query, key, value, mask)
    return jax.lax.platform_dependent(*arrays, cuda=by_cudnn, default=otherwise)


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """Returns ``jax.nn.dot_product_attention``, but zeros for a query that sees none.

    Args:
      query: ``[B, T, N, H]``.
      key: ``[B, S, K, H]``.
      value: ``[B, S, K, H]``.
      mask: bool ``[B or 1, N or 1, T or 1, S]``.
      scale: Factor on the logits; ``H ** -0.5`` if ``None``.
      implementation: As jax has it.

    Returns:
      ``[B, T, N, H]``.

    Example:
      >>> x, mask = jnp.ones((1, 2, 1, 4)), jnp.array([[[[False] * 2, [True] * 2]]])
      >>> dot_product_attention(x, x, x, mask)[0, :, 0, 0].tolist()
      [0.0, 1.0]
    """
    if mask is not None:  # cuDNN takes one with all queries only
        shape = (*mask.shape[:2], query.shape[1], key.shape[1])
        mask = jnp.broadcast_to(mask, shape)
    output = jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=scale, implementation=implementation
    )
    if mask is None:
        return output
    # It takes a far negative number off instead of masking: where all are masked,
    # that is off all alike, and its softmax is the mean.
    sees = mask.any(axis=-1).swapaxes(1, 2)[..., None]  # [B or 1, T, N or 1, 1]
    return jnp.where(sees, output, jnp.zeros_like(output))
