"""Precision and chance: what every room does the same way."""

from __future__ import annotations

import functools

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


def first_largest(x: jax.Array) -> jax.Array:
    """Returns where the largest number along the last axis stands first.

    ``argmax`` in two plain reductions, which a CPU does many numbers at a time; its
    own, of pairs, it does one by one.

    Args:
      x: ``[..., size]``. Of NaN the place means nothing.

    Returns:
      int32 ``[...]``, from 0 to ``size - 1``.

    Example:
      >>> first_largest(jnp.array([[1.0, 3.0, 3.0], [2.0, -jnp.inf, 1.0]])).tolist()
      [1, 0]
    """
    size = x.shape[-1]
    largest = x.max(axis=-1, keepdims=True)
    places = jnp.where(x == largest, jnp.arange(size, dtype=jnp.int32), size - 1)
    return places.min(axis=-1)


def standardize(x: jax.Array, eps: float, *, centred: bool) -> jax.Array:
    """Returns ``x`` scaled to a mean square of one along its last axis.

    Its derivative is written out: what is left of dx without its parts along one and
    the result, times the scale. Of the plain form XLA makes more passes over memory.

    Args:
      x: ``[..., size]``.
      eps: Added to the mean square before its root.
      centred: Whether the mean is taken off first, as layer norm does.

    Returns:
      ``[..., size]``.

    Example:
      >>> standardize(jnp.array([1.0, 3.0]), 0.0, centred=True).tolist()
      [-1.0, 1.0]
    """
    return _standardize(x, eps, centred)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _standardize(x: jax.Array, eps: float, centred: bool) -> jax.Array:
    return _standardized(x, eps, centred)[0]


def _standardized(
    x: jax.Array, eps: float, centred: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the standardised and the factor ``[..., 1]`` that made it so."""
    if centred:
        x = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)
    return x * factor, factor


@_standardize.defjvp
def _standardize_jvp(
    eps: float,
    centred: bool,
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y, factor = _standardized(x, eps, centred)
    away = dx - y * (y * dx).mean(axis=-1, keepdims=True)
    if centred:
        away = away - dx.mean(axis=-1, keepdims=True)
    return y, factor * away


def dropout(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
    """Drops numbers at random and scales the rest, so that the mean stays.

    Chance is drawn in steps of 2 ** -16, two numbers from each word: making random
    words is what dropout costs.

    Args:
      x: ``[..., size]``.
      rate: Share that is dropped, in [0, 1).
      rng: PRNG key.

    Returns:
      ``[..., size]`` in x's dtype (Srivastava et al. 2014).

    Example:
      >>> dropped = dropout(jnp.ones(1000), 0.5, jax.random.key(0))
      >>> sorted(set(dropped.tolist()))
      [0.0, 2.0]
    """
    *leading, size = x.shape
    words = jax.random.bits(rng, (*leading, -(-size // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [..., size / 2, 2]
    halves = halves.reshape(*leading, -1)[..., :size]
    steps = min(max(round((1 - rate) * 2**16), 1), 2**16 - 1)
    return jnp.where(halves < steps, x / (steps / 2**16), jnp.zeros_like(x))
