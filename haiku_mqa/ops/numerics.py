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


def wide_einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns ``jnp.einsum`` of two arrays, summed and returned in the wide dtype.

    Args:
      equation: As ``jnp.einsum``'s.
      x: Left array.
      y: Right array, of the same dtype.

    Returns:
      float32, or float64 where the inputs are.

    Example:
      >>> x = jnp.full(300, 1.0, jnp.bfloat16)
      >>> wide_einsum("i,i->", x, x), jnp.einsum("i,i->", x, x).dtype.name
      (Array(300., dtype=float32), 'bfloat16')
    """
    wide = wide_dtype(x.dtype)
    if x.dtype == wide:
        return jnp.einsum(equation, x, y)

    def widened(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x.astype(wide), y.astype(wide))

    def accumulated(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, y, preferred_element_type=wide)

    # On a CPU a half-precision product that sums in float32 has no fast kernel, and
    # the conversion is fused into the float32 one; elsewhere it is what hardware does.
    return jax.lax.platform_dependent(x, y, cpu=widened, default=accumulated)


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
