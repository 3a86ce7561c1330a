"""Keys or values in one byte a number, with a scale for each head of each token."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

_LARGEST = 127  # -128 is left out, so that a number and its negative are as exact


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Array:
    """An array in int8, with a scale along its last axis.

    A number is off by at most half a step: the greatest of its head and token,
    divided by 254.

    Attributes:
      numbers: int8 ``[B, K, S, H]``, from -127 to 127.
      scales: float32 ``[B, K, S]``, what one step is worth.

    Example:
      >>> stored = Int8Array.of(jnp.array([0.5, -2.0, 0.1]))
      >>> stored.numbers.tolist(), round(float(stored.scales), 4)
      ([32, -127, 6], 0.0157)
      >>> error = jnp.abs(stored.astype(jnp.float32) - jnp.array([0.5, -2.0, 0.1]))
      >>> bool((error <= 2.0 / 254).all())
      True
    """

    numbers: jax.Array
    scales: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> Int8Array:
        """Returns an array of floating point, rounded to int8.

        Args:
          x: ``[..., H]``.

        Returns:
          Numbers ``[..., H]`` and scales ``[...]``. NaN stays NaN, by its scale.
        """
        wide = x.astype(jnp.float32)
        scales = jnp.abs(wide).max(axis=-1) / _LARGEST
        steps = wide / jnp.where(scales == 0, 1.0, scales)[..., None]
        return cls(jnp.round(steps).astype(jnp.int8), scales)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        return self.numbers.shape

    @property
    def dtype(self) -> Any:
        """int8."""
        return self.numbers.dtype

    def astype(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Returns the array in floating point.

        Args:
          dtype: Of the result.

        Returns:
          ``[..., H]``; computed in float32.
        """
        wide = self.numbers.astype(jnp.float32) * self.scales[..., None]
        return wide.astype(dtype)
