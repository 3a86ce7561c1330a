"""How fast the machine multiplies matrices: the limit of training and of prefill."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp


def matmul_rate(
    size: int = 2048,
    passes: int = 3,
    dtype: jax.typing.DTypeLike = "float32",
) -> float:
    """Measures how many floating-point operations a second a product makes.

    Two square matrices are multiplied, by all cores together or by an accelerator. A
    multiplication and an addition are two operations. The fastest pass counts: a
    limit is what can be had when nobody disturbs.

    Args:
      size: Of the matrices, in rows.
      passes: How often they are multiplied.
      dtype: Of the matrices and of their product.

    Returns:
      Operations per second.

    Example:
      >>> matmul_rate(size=64, passes=1) > 0
      True
    """
    # Drawn, as weights are: of ones a chip makes more, as fewer of its wires change.
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))  # compiles
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
