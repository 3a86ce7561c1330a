"""Precision and chance: what every room does the same way."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def wide_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Returns the dtype that sums and exponentials are computed in.

    Args:
      dtype: Of the inputs.

    Returns:
      float32, or float64 where the inputs are.

    Example:
      >>> wide_dtype(jnp.bfloat16).__name__
      'float32'
    """
    # Not promote_types: under strict promotion that refuses bfloat16 with float32.
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def dropout(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
    """Drops numbers at random and scales the rest, so that the mean stays.

    Args:
      x: ``[...]``.
      rate: Share that is dropped, in [0, 1).
      rng: PRNG key.

    Returns:
      ``[...]`` in x's dtype (Srivastava et al. 2014).

    Example:
      >>> dropped = dropout(jnp.ones(1000), 0.5, jax.random.key(0))
      >>> sorted(set(dropped.tolist()))
      [0.0, 2.0]
    """
    kept = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))
