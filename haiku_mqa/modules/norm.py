"""Layer norm and RMS norm, computed in float32."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.config import DecoderConfig, Norm
from haiku_mqa.ops.numerics import standardize, wide_dtype


class Normalization(hk.Module):
    """Normalises the last axis; parameters are those of ``hk.LayerNorm``/``RMSNorm``.

    ``scale`` ``[size]`` and, for layer norm with a bias, ``offset`` ``[size]``; by
    head, ``[heads, size]`` for inputs ``[..., heads, size]``.
    """

    def __init__(
        self,
        norm: Norm,
        *,
        eps: float = 1e-5,
        with_bias: bool = True,
        by_head: bool = False,
        param_dtype: jax.typing.DTypeLike | None = None,
        name: str | None = None,
    ):
        """Describes the norm.

        Args:
          norm: ``"layer"``, ``"rms"`` or ``"rms_one_plus"``.
          eps: Added to the variance before its root.
          with_bias: Whether layer norm has an ``offset``.
          by_head: Whether each entry of the axis before the last has its own scale.
          param_dtype: What parameters are stored in; the input's dtype if ``None``.
          name: Of the module.
        """
        super().__init__(name=name)
        self.norm: Norm = norm
        self.eps = eps
        self.with_bias = with_bias
        self.by_head = by_head
        self.param_dtype = param_dtype

    @classmethod
    def from_config(cls, config: DecoderConfig, name: str) -> Normalization:
        """Returns the norm that a config asks for, under a name."""
        return cls(
            config.norm,
            eps=config.norm_eps,
            with_bias=config.norm_bias,
            param_dtype=config.param_dtype,
            name=name,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns ``x`` normalised along its last axis, in its own dtype."""
        dtype = self.param_dtype or x.dtype
        shape = x.shape[-2:] if self.by_head else x.shape[-1:]
        wide = x.astype(wide_dtype(x.dtype))
        wide = standardize(wide, self.eps, centred=self.norm == "layer")

        init = jnp.zeros if self.norm == "rms_one_plus" else jnp.ones
        scale = hk.get_parameter("scale", shape, dtype, init=init).astype(wide.dtype)
        scale = 1 + scale if self.norm == "rms_one_plus" else scale
        wide = wide * jnp.broadcast_to(scale, wide.shape)
        if self.norm == "layer" and self.with_bias:
            offset = hk.get_parameter("offset", shape, dtype, init=jnp.zeros)
            wide = wide + jnp.broadcast_to(offset.astype(wide.dtype), wide.shape)
        return wide.astype(x.dtype)
