"""A stack of blocks."""

from __future__ import annotations

from typing import NamedTuple, overload

import haiku as hk
import jax

from haiku_mqa.cache import LayerCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.block import TransformerDecoderBlock
from haiku_mqa.modules.context import Context, free_context
from haiku_mqa.modules.norm import Normalization
from haiku_mqa.ops.masks import broadcast_mask


class StackOutput(NamedTuple):
    """What a stack returns where it was given a ``Context``.

    Attributes:
      x: ``[B, T, D]``.
      layers: Each layer's cache after these tokens; ``None`` without a cache.
      attention: Each layer's weights, float32 ``[B, N, T, S]``, where the context
        asks for them; else ``None``.
    """

    x: jax.Array
    layers: tuple[LayerCache, ...] | None
    attention: tuple[jax.Array, ...] | None


class TransformerDecoder(hk.Module):
    """A stack of ``num_layers`` blocks and, where the config has one, a final norm.

    Example:
      >>> import jax.numpy as jnp
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> mask = jnp.tril(jnp.ones((10, 10), bool))
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda x: TransformerDecoder(config)(x, mask)))
      >>> x = jnp.ones((2, 10, 64))
      >>> apply(init(jax.random.key(0), x), x).shape
      (2, 10, 64)
    """

    def __init__(self, config: DecoderConfig, *, name: str | None = None):
        """Describes the stack; ``config`` says how many blocks, and which."""
        super().__init__(name=name)
        self.config = config

    @overload
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array: ...

    @overload
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        context: Context,
        layers: tuple[LayerCache, ...] | None = None,
    ) -> StackOutput: ...

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        context: Context | None = None,
        layers: tuple[LayerCache, ...] | None = None,
    ) -> jax.Array | StackOutput:
        """Runs the stack.

        Args:
          x: ``[B, T, D]``.
          mask: bool ``[T, T]``, ``[B, T, T]`` or ``[B, N, T, T]``, True means may
            attend; nothing is masked if ``None``. With a context its mask counts.
          context: Who stands where and sees whom, inside a language model.
          layers: The past of each layer, inside a language model.

        Returns:
          ``[B, T, D]``, or a ``StackOutput`` where a context was given.
        """
        if context is not None:
            return self._stack(x, context, layers)
        batch, length, _ = x.shape
        if mask is not None:
            mask = broadcast_mask(mask, batch, self.config.num_heads, length, length)
        return self._stack(x, free_context(batch, length, length, mask), None).x

    @hk.transparent
    def _stack(
        self, x: jax.Array, context: Context, layers: tuple[LayerCache, ...] | None
    ) -> StackOutput:
        after: list[LayerCache] = []
        attention: list[jax.Array] = []
        for layer in range(self.config.num_layers):
            block = TransformerDecoderBlock(self.config, layer, name=f"layer_{layer}")
            output = block(x, context=context, cache=layers[layer] if layers else None)
            x = output.x
            if output.cache is not None:
                after.append(output.cache)
            if output.attention is not None:
                attention.append(output.attention)
        if self.config.final_norm:
            x = Normalization.from_config(self.config, "final_norm")(x)
        return StackOutput(x, tuple(after) or None, tuple(attention) or None)
