"""The feed-forward of a block, plain or gated."""

from __future__ import annotations

import functools
import math

import haiku as hk
import jax

from haiku_mqa.config import Activation, DecoderConfig
from haiku_mqa.modules.linear import Linear, project
from haiku_mqa.ops.numerics import wide_dtype


def _gelu(x: jax.Array) -> jax.Array:
    # By erf: jax.nn.gelu takes erfc, which keeps digits far below any tolerance for
    # three times the work, a tenth of a small model's training step.
    wide = x.astype(wide_dtype(x.dtype))
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": _gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


class FeedForward(hk.Module):
    """Two layers with a non-linearity between; three where it is gated.

    Plain: ``down(f(up(x)))`` (Vaswani et al. 2017). Gated: ``down(f(gate(x)) *
    up(x))`` (Shazeer 2020, *GLU Variants Improve Transformer*).

    Example:
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda x: FeedForward(d_ff=256)(x)))
      >>> params = init(jax.random.key(0), jax.numpy.ones((2, 10, 64)))
      >>> {path: leaves["w"].shape for path, leaves in params.items()}
      {'feed_forward/up': (64, 256), 'feed_forward/down': (256, 64)}
    """

    def __init__(
        self,
        d_ff: int,
        *,
        activation: Activation = "relu",
        gated: bool = False,
        with_bias: bool = True,
        param_dtype: jax.typing.DTypeLike | None = None,
        name: str | None = None,
    ):
        """Describes the feed-forward.

        Args:
          d_ff: F, the width between the layers.
          activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
          gated: Whether a third layer gates.
          with_bias: Whether the layers have biases.
          param_dtype: What parameters are stored in; the input's dtype if ``None``.
          name: Of the module.
        """
        super().__init__(name=name)
        self.d_ff = d_ff
        self.activation = ACTIVATIONS[activation]
        self.gated = gated
        self.with_bias = with_bias
        self.param_dtype = param_dtype

    @classmethod
    def from_config(cls, config: DecoderConfig, name: str) -> FeedForward:
        """Returns the feed-forward that a config asks for, under a name."""
        return cls(
            config.d_ff,
            activation=config.activation,
            gated=config.gated,
            with_bias=config.ff_bias,
            param_dtype=config.param_dtype,
            name=name,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns ``[..., D]`` for ``[..., D]``, each position on its own."""
        linear = functools.partial(
            Linear, with_bias=self.with_bias, param_dtype=self.param_dtype
        )
        up = linear(self.d_ff, name="up")
        if self.gated:
            above, gate = project(x, [up, linear(self.d_ff, name="gate")])
            hidden = self.activation(gate) * above
        else:
            hidden = self.activation(up(x))
        return linear(x.shape[-1], name="down")(hidden)
