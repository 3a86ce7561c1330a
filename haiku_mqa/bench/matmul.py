"""How fast the machine multiplies matrices: the limit of training."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp


def matmul_rate(size: int = 2048, passes: int = 3) -> float:
    """Measures how many floating-point operations a second a float32 product makes.

    Two square matrices are multiplied, by all cores together. A multiplication and
    an addition are two operations. The fastest pass counts: a limit is what can be
    had when nobody disturbs.

    Args:
      size: Of the matrices, in rows.
      passes: How often they are multiplied.

    Returns:
      Operations per second.

    Example:
      >>> matmul_rate(size=64, passes=1) > 0
      True
    """
    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))  # compiles
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
