"""One block of a decoder: attention and feed-forward, each with a residual."""

from __future__ import annotations

from typing import overload

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.cache import LayerCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.attention import MultiQueryAttention
from haiku_mqa.modules.context import Context, LayerOutput, free_context
from haiku_mqa.modules.dropout import maybe_dropout
from haiku_mqa.modules.feed_forward import FeedForward
from haiku_mqa.modules.norm import Normalization
from haiku_mqa.ops.masks import broadcast_mask


class TransformerDecoderBlock(hk.Module):
    """Attention and feed-forward, with norms and residuals as a config places them.

    Example:
      >>> import jax.numpy as jnp
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> mask = jnp.tril(jnp.ones((10, 10), bool))
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda x: TransformerDecoderBlock(config)(x, mask=mask)))
      >>> x = jnp.ones((2, 10, 64))
      >>> apply(init(jax.random.key(0), x), x).shape
      (2, 10, 64)
    """

    def __init__(
        self, config: DecoderConfig, layer: int = 0, *, name: str | None = None
    ):
        """Describes the block.

        Args:
          config: The decoder that the block belongs to.
          layer: Which layer it is, from zero; they may differ in window and positions.
          name: Of the module.
        """
        super().__init__(name=name)
        self.config = config
        self.layer = layer

    @overload
    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None = None,
        value: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array: ...

    @overload
    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None = None,
        value: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        context: Context,
        cache: LayerCache | None = None,
    ) -> LayerOutput: ...

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None = None,
        value: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        context: Context | None = None,
        cache: LayerCache | None = None,
    ) -> jax.Array | LayerOutput:
        """Runs the block.

        Args:
          x: ``[B, T, D]``.
          key: ``[B, S, D]``, what keys are projected from; what queries are, if
            ``None``.
          value: ``[B, S, D]``, what values are projected from; likewise.
          mask: bool ``[T, S]``, ``[B, T, S]`` or ``[B, N, T, S]``, True means may
            attend. With a context the context's mask counts.
          context: Who stands where and sees whom, inside a decoder.
          cache: The past of this layer, inside a decoder.

        Returns:
          ``[B, T, D]``, or a ``LayerOutput`` where a context was given.
        """
        if context is not None:
            return self._block(x, key, value, context, cache)
        batch, queries, _ = x.shape
        keys = queries if key is None else key.shape[1]
        if mask is not None:
            mask = broadcast_mask(mask, batch, self.config.num_heads, queries, keys)
        free = free_context(batch, queries, keys, mask)
        return self._block(x, key, value, free, None).x

    @hk.transparent
    def _block(
        self,
        x: jax.Array,
        key: jax.Array | None,
        value: jax.Array | None,
        context: Context,
        cache: LayerCache | None,
    ) -> LayerOutput:
        config = self.config
        attention = MultiQueryAttention.from_config(config, self.layer, "attention")
        feed_forward = FeedForward.from_config(config, "feed_forward")

        normed = self._before(x, "attention_norm")
        attended = attention(
            normed,
            normed if key is None else key,
            normed if value is None else value,
            context=context,
            cache=cache,
        )
        branch = self._after(attended.x, "attention_post_norm", context)
        if config.block_layout == "sequential":
            x = self._join(x, branch, "attention_post_norm")
            normed = self._before(x, "feed_forward_norm")
            branch = feed_forward(normed)
            branch = self._after(branch, "feed_forward_post_norm", context)
            x = self._join(x, branch, "feed_forward_post_norm")
        else:
            if config.block_layout == "parallel":
                normed = self._before(x, "feed_forward_norm")
            beside = feed_forward(normed)
            x = x + branch + self._after(beside, "feed_forward_post_norm", context)
        return attended._replace(x=x)

    @hk.transparent
    def _before(self, x: jax.Array, name: str) -> jax.Array:
        """Normalises what a part reads, where the config places a norm there."""
        if self.config.norm_placement in ("before", "both"):
            return Normalization.from_config(self.config, name)(x)
        return x

    @hk.transparent
    def _after(self, branch: jax.Array, name: str, context: Context) -> jax.Array:
        """Normalises, drops out and scales what a part made, before it is added."""
        if self.config.norm_placement in ("after", "both"):
            branch = Normalization.from_config(self.config, name)(branch)
        rate, scale = self.config.residual_dropout, self.config.residual_scale
        branch = maybe_dropout(branch, rate, context.is_training)
        return branch if scale is None else branch * jnp.asarray(scale, branch.dtype)

    @hk.transparent
    def _join(self, x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
        """Adds a part to the stream, and normalises the sum where that is asked."""
        if self.config.norm_placement == "residual":
            return Normalization.from_config(self.config, name)(x + branch)
        return x + branch
