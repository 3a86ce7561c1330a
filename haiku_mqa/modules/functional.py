"""The classic decoder as functions, for use inside any ``hk.transform``.

A decoder block of these is the first transformer's: norm(x + f(x)) around multi-query
attention with one key/value head and a ReLU feed-forward, with biases and no
positions. ``causal_mask`` and ``multi_query_attention`` own no parameters and live in
``haiku_mqa.ops``.
"""

from __future__ import annotations

import jax

from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.block import TransformerDecoderBlock
from haiku_mqa.modules.decoder import TransformerDecoder
from haiku_mqa.modules.feed_forward import FeedForward


def classic_config(
    *,
    num_layers: int,
    num_heads: int,
    d_model: int,
    d_ff: int,
    vocab_size: int = 1,
    max_length: int = 2048,
) -> DecoderConfig:
    """Returns the classic decoder's config.

    Args:
      num_layers: L.
      num_heads: N, query heads; there is one key/value head.
      d_model: D.
      d_ff: F.
      vocab_size: V; a stack on its own reads no tokens, and needs none.
      max_length: Longest sequence, in tokens.

    Returns:
      The config.

    Example:
      >>> classic_config(num_layers=6, num_heads=8, d_model=64, d_ff=256).norm_placement
      'residual'
    """
    return DecoderConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        d_model=d_model,
        d_ff=d_ff,
        max_length=max_length,
        query_bias=True,
        key_bias=True,
        value_bias=True,
        output_bias=True,
        position_embedding="none",
        norm="layer",
        norm_placement="residual",
        final_norm=False,
        activation="relu",
        gated=False,
        ff_bias=True,
    )


def feed_forward(x: jax.Array, d_ff: int) -> jax.Array:
    """Two layers with a ReLU between, each position on its own.

    Args:
      x: ``[..., D]``.
      d_ff: F, the width between the layers.

    Returns:
      ``[..., D]``.

    Example:
      >>> import haiku as hk, jax.numpy as jnp
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda x: feed_forward(x, d_ff=256)))
      >>> x = jnp.ones((2, 10, 64))
      >>> apply(init(jax.random.key(0), x), x).shape
      (2, 10, 64)
    """
    return FeedForward(d_ff)(x)


def transformer_decoder_block(
    x: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    num_heads: int,
    d_model: int,
    d_ff: int,
) -> jax.Array:
    """Multi-query attention and feed-forward, each with residual and layer norm.

    Args:
      x: ``[B, T, D]``, what queries are made from.
      key: ``[B, S, D]``, what keys are made from; ``x`` for self-attention.
      value: ``[B, S, D]``, what values are made from; ``x`` for self-attention.
      mask: bool ``[T, S]``, ``[B, T, S]`` or ``[B, N, T, S]``, True means may attend;
        ``None`` masks nothing.
      num_heads: N, query heads.
      d_model: D; must be the size of ``x``.
      d_ff: F.

    Returns:
      ``[B, T, D]``.

    Raises:
      ValueError: ``x`` is not of size ``d_model``, ``num_heads`` does not divide it,
        or the mask is not boolean or of another shape.

    Example:
      >>> import haiku as hk, jax.numpy as jnp
      >>> mask = jnp.tril(jnp.ones((10, 10), bool))
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda x: transformer_decoder_block(x, x, x, mask, 8, 64, 256)))
      >>> x = jnp.ones((2, 10, 64))
      >>> apply(init(jax.random.key(0), x), x).shape
      (2, 10, 64)
    """
    _check_width(x, d_model)
    config = classic_config(
        num_layers=1, num_heads=num_heads, d_model=d_model, d_ff=d_ff
    )
    return TransformerDecoderBlock(config)(x, key, value, mask)


def transformer_decoder(
    x: jax.Array,
    mask: jax.Array | None,
    num_layers: int,
    num_heads: int,
    d_model: int,
    d_ff: int,
) -> jax.Array:
    """A stack of decoder blocks.

    Args:
      x: ``[B, T, D]``.
      mask: bool ``[T, T]``, ``[B, T, T]`` or ``[B, N, T, T]``, True means may attend;
        ``None`` masks nothing.
      num_layers: L.
      num_heads: N, query heads.
      d_model: D; must be the size of ``x``.
      d_ff: F.

    Returns:
      ``[B, T, D]``.

    Raises:
      ValueError: As ``transformer_decoder_block``.

    Example:
      >>> import haiku as hk, jax.numpy as jnp
      >>> from haiku_mqa.ops import causal_mask
      >>> init, apply = hk.without_apply_rng(hk.transform(
      ...     lambda x: transformer_decoder(x, causal_mask(10), 6, 8, 64, 256)))
      >>> x = jnp.ones((2, 10, 64))
      >>> apply(init(jax.random.key(0), x), x).shape
      (2, 10, 64)
    """
    _check_width(x, d_model)
    config = classic_config(
        num_layers=num_layers, num_heads=num_heads, d_model=d_model, d_ff=d_ff
    )
    return TransformerDecoder(config)(x, mask)


def _check_width(x: jax.Array, d_model: int) -> None:
    if x.ndim != 3 or x.shape[-1] != d_model:
        raise ValueError(
            f"x must be [B, T, d_model] with d_model = {d_model}, "
            f"got shape {list(x.shape)}"
        )
