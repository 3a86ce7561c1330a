"""Dropout where, and only where, a model is training."""

from __future__ import annotations

import haiku as hk
import jax

from haiku_mqa.ops.numerics import dropout


def maybe_dropout(x: jax.Array, rate: float, is_training: bool) -> jax.Array:
    """Returns ``x`` with a share of it dropped while training; else ``x`` itself."""
    if rate == 0 or not is_training:
        return x
    return dropout(x, rate, hk.next_rng_key())
