"""Weights that nobody trained, for what takes as long whatever they are."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from haiku_mqa.model import Model


def drawn_weights(model: Model, seed: int = 0) -> dict[str, dict[str, jax.Array]]:
    """Returns weights drawn on the device, array by array, in the dtype they have.

    No array is ever held in another dtype, and none passes through the host.

    Args:
      model: The model.
      seed: Of what is drawn.

    Returns:
      As ``model.init``, but of one normal distribution, scales of norms apart.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> weights = drawn_weights(build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256,
      ...     param_dtype="bfloat16")))
      >>> {leaf.dtype.name for leaf in jax.tree.leaves(weights)}
      {'bfloat16'}
    """
    leaves, tree = jax.tree.flatten(model.param_shapes)
    rngs = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [
        _drawn(rng, leaf.shape, leaf.dtype)
        for rng, leaf in zip(rngs, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    # Of rows: neither grows nor shrinks what it multiplies by much.
    return jax.random.normal(rng, shape, dtype) * jnp.asarray(max(shape) ** -0.5, dtype)
