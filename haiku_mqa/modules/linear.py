"""A linear layer whose parameters keep a dtype of their own."""

from __future__ import annotations

from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.ops.products import dots
from haiku_mqa.ops.quantized import QuantizedMatrix


class Linear(hk.Module):
    """``hk.Linear`` with parameters stored in one dtype and used in another.

    Parameters are ``w`` ``[in, out]`` and ``b`` ``[out]``, as ``hk.Linear``'s; ``w``
    may be quantized by columns.
    """

    def __init__(
        self,
        output_size: int,
        *,
        with_bias: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
        param_dtype: jax.typing.DTypeLike | None = None,
        name: str | None = None,
    ):
        """Describes the layer.

        Args:
          output_size: Size of the last axis of the result.
          with_bias: Whether ``b`` is added.
          w_init: Initializer of ``w``; truncated normal of ``in ** -0.5`` if ``None``.
          b_init: Initializer of ``b``; zeros if ``None``.
          param_dtype: What parameters are stored in; the input's dtype if ``None``.
          name: Of the module.
        """
        super().__init__(name=name)
        self.output_size = output_size
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init = b_init or jnp.zeros
        self.param_dtype = param_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns ``x @ w + b``, ``[..., in]`` to ``[..., out]``, in x's dtype."""
        return project(x, [self])[0]

    def weight(self, x: jax.Array) -> jax.Array | QuantizedMatrix:
        """Returns ``w``, for inputs like x."""
        input_size = x.shape[-1]
        return hk.get_parameter(
            "w",
            (input_size, self.output_size),
            self.param_dtype or x.dtype,
            init=self.w_init or hk.initializers.TruncatedNormal(input_size**-0.5),
        )

    def biased(self, y: jax.Array) -> jax.Array:
        """Returns ``y + b``, or y where the layer has no biases."""
        if not self.with_bias:
            return y
        dtype = self.param_dtype or y.dtype
        b = hk.get_parameter("b", (self.output_size,), dtype, init=self.b_init)
        return y + jnp.broadcast_to(b.astype(y.dtype), y.shape)


def project(x: jax.Array, layers: Sequence[Linear]) -> list[jax.Array]:
    """Returns what several layers make of one input, read in one pass.

    Args:
      x: ``[..., in]``.
      layers: Each with an output size of its own.

    Returns:
      For each layer ``[..., out]``, in x's dtype.
    """
    # As one matrix: with two leading axes, XLA would transpose the whole gradient
    # of y in memory to make that of w.
    flat = x.reshape(-1, x.shape[-1])
    products = dots(flat, [layer.weight(x) for layer in layers])
    return [
        layer.biased(y.reshape(*x.shape[:-1], layer.output_size))
        for layer, y in zip(layers, products, strict=True)
    ]
