"""Tokens in, logits out."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.cache import KVCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.context import make_context
from haiku_mqa.modules.decoder import TransformerDecoder
from haiku_mqa.modules.dropout import maybe_dropout
from haiku_mqa.modules.embed import Embed
from haiku_mqa.ops.products import wide_dot, wide_table_dot
from haiku_mqa.ops.quantized import QuantizedMatrix


class DecoderOutput(NamedTuple):
    """What a decoder says of the tokens it was given.

    Attributes:
      logits: float32 ``[B, T, V]``, of the token after each; ``[B, M, V]`` where
        ``logits_at`` named M places.
      cache: The cache after these tokens; ``None`` if none was given.
      attention: Each layer's weights, float32 ``[B, N, T, S]``, where they were
        asked for; else ``None``.
      hidden: ``[B, T, D]`` in the config's ``dtype``, what logits are made from,
        where it was asked for; else ``None``.

    Example:
      >>> DecoderOutput(jnp.zeros((1, 3, 256)), cache=None, attention=None).logits.shape
      (1, 3, 256)
    """

    logits: jax.Array
    cache: KVCache | None
    attention: tuple[jax.Array, ...] | None
    hidden: jax.Array | None = None


class DecoderLM(hk.Module):
    """A decoder-only language model: embeddings, a stack of blocks, logits.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda tokens: DecoderLM(config)(tokens).logits))
      >>> tokens = jnp.array([[1, 2, 3]])
      >>> apply(init(jax.random.key(0), tokens), tokens).shape
      (1, 3, 256)
    """

    def __init__(self, config: DecoderConfig, *, name: str | None = None):
        """Describes the model; ``config`` says all of it."""
        super().__init__(name=name)
        self.config = config

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: KVCache | None = None,
        logits_at: jax.Array | None = None,
        is_training: bool = False,
        return_attention: bool = False,
        return_hidden: bool = False,
    ) -> DecoderOutput:
        """Reads tokens causally; one call for training, prefill and decode.

        Args:
          tokens: int32 ``[B, T]``. An id out of range gives NaN.
          positions: int32 ``[B, T]``, where tokens stand; by default they count from
            zero in their row or segment, and go on from the cache.
          segment_ids: int32 ``[B, T]``, for packed sequences: tokens see only their
            own segment.
          mask: bool ``[B, T]``, which tokens are real (padding may stand on either
            side), or ``[B, T, S]`` or ``[B, N, T, S]``, which pairs may attend, in
            addition to causality.
          cache: The past, if there is one; S is then its capacity.
          logits_at: int32 ``[B, M]``, at which of the T places logits are wanted;
            at all if ``None``, at none where M is 0.
          is_training: Whether dropout acts; needs an rng.
          return_attention: Whether attention weights are returned.
          return_hidden: Whether the vectors that logits are made from are returned,
            those of all T places whatever ``logits_at`` says.

        Returns:
          Logits, the cache after these tokens, and attention weights and hidden
          vectors if asked for.
        """
        config = self.config
        context, after = make_context(
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            mask=mask,
            cache=cache,
            num_heads=config.num_heads,
            is_training=is_training,
            return_attention=return_attention,
        )
        embed = Embed(
            config.vocab_size,
            config.d_model,
            param_dtype=config.param_dtype,
            name="embed",
        )
        x = embed(tokens, config.dtype)  # [B, T, D]
        if config.embedding_scale is not None:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.position_embedding == "learned":
            x = x + Embed(
                config.max_length,
                config.d_model,
                param_dtype=config.param_dtype,
                name="position_embed",
            )(context.positions, config.dtype)
        x = maybe_dropout(x, config.embedding_dropout, is_training)

        stack = TransformerDecoder(config, name="decoder")(
            x, context=context, layers=cache.layers if cache else None
        )
        x = stack.x
        if logits_at is not None:
            x = jnp.take_along_axis(x, logits_at[..., None], axis=1)
        logits = self._logits(x, embed)
        if after is not None and stack.layers is not None:
            after = dataclasses.replace(after, layers=stack.layers)
        hidden = stack.x if return_hidden else None
        return DecoderOutput(logits, after, stack.attention, hidden)

    @hk.transparent
    def _logits(self, x: jax.Array, embed: Embed) -> jax.Array:
        config = self.config
        rows = x.reshape(-1, config.d_model)
        unembed = Unembed(config, name="unembed")
        if config.tie_embeddings:
            logits = wide_table_dot(rows, embed.table)
        else:
            logits = wide_dot(rows, unembed())
        if config.logit_bias:
            bias = unembed.bias().astype(logits.dtype)
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        logits = logits.reshape(*x.shape[:2], config.vocab_size)
        if config.logit_scale is not None:
            logits = logits * config.logit_scale
        if config.final_logit_softcap is not None:
            cap = config.final_logit_softcap
            logits = cap * jnp.tanh(logits / cap)
        return logits


class Unembed(hk.Module):
    """What logits are made with, where the config has it.

    ``w`` ``[D, V]`` where the output matrix is not the embedding's, ``b`` ``[V]``
    where there is a bias.
    """

    def __init__(self, config: DecoderConfig, *, name: str | None = None):
        """Describes the matrix; ``config`` gives its sizes and dtype."""
        super().__init__(name=name)
        self.config = config

    def __call__(self) -> jax.Array | QuantizedMatrix:
        """Returns the matrix, which may be quantized by columns."""
        config = self.config
        return hk.get_parameter(
            "w",
            (config.d_model, config.vocab_size),
            jnp.dtype(config.param_dtype),
            init=hk.initializers.TruncatedNormal(config.d_model**-0.5),
        )

    def bias(self) -> jax.Array:
        """Returns the bias."""
        config = self.config
        return hk.get_parameter(
            "b", (config.vocab_size,), jnp.dtype(config.param_dtype), init=jnp.zeros
        )
