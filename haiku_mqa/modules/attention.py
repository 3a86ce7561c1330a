"""Multi-query attention as a module, a drop-in for ``hk.MultiHeadAttention``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, overload

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import check_kv_heads
from haiku_mqa.cache import LayerCache
from haiku_mqa.config import DecoderConfig, Norm, QKNormSpan
from haiku_mqa.modules.context import Context, LayerOutput, free_context
from haiku_mqa.modules.linear import Linear, project
from haiku_mqa.modules.norm import Normalization
from haiku_mqa.ops.attention import alibi_slopes, multi_query_attention
from haiku_mqa.ops.masks import broadcast_mask, window_mask
from haiku_mqa.ops.rotary import apply_rotary, rotary_frequencies

PROJECTIONS = ("query", "key", "value", "linear")


class MultiQueryAttention(hk.Module):
    """Attention with N query heads over K key/value heads.

    Replaces ``hk.MultiHeadAttention`` in one line: the same words, the same call,
    the same parameter paths (``query``, ``key``, ``value``, ``linear``, under the
    same default name, so that checkpoints stay good). With ``num_kv_heads`` equal to
    ``num_heads`` it takes that module's parameters and returns its numbers; with one,
    the default, it is multi-query attention (Shazeer 2019).

    Example:
      >>> def forward(x):
      ...     attention = MultiQueryAttention(num_heads=8, key_size=16)
      ...     return attention(x, x, x, mask=jnp.tril(jnp.ones((4, 4), bool)))
      >>> init, apply = hk.without_apply_rng(hk.transform(forward))
      >>> x = jnp.ones((2, 4, 128))
      >>> params = init(jax.random.key(0), x)
      >>> apply(params, x).shape, params["multi_head_attention/key"]["w"].shape
      ((2, 4, 128), (128, 16))
    """

    def __init__(
        self,
        num_heads: int,
        key_size: int,
        *,
        num_kv_heads: int = 1,
        w_init: hk.initializers.Initializer | None = None,
        with_bias: bool | Collection[str] = True,
        b_init: hk.initializers.Initializer | None = None,
        value_size: int | None = None,
        model_size: int | None = None,
        qk_norm: Norm | None = None,
        qk_norm_span: QKNormSpan = "head",
        norm_eps: float = 1e-5,
        rotary: tuple[np.ndarray, float] | None = None,
        alibi: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        dropout_rate: float = 0.0,
        param_dtype: jax.typing.DTypeLike | None = None,
        name: str | None = "multi_head_attention",
    ):
        """Describes the attention.

        Args:
          num_heads: N, query heads.
          key_size: H, the size of a query or key head.
          num_kv_heads: K, key/value heads; divides N.
          w_init: Initializer of the weights; ``hk.Linear``'s if ``None``.
          with_bias: Whether projections have biases, or the names of those that do,
            from ``query``, ``key``, ``value``, ``linear``.
          b_init: Initializer of the biases; zeros if ``None``.
          value_size: Size of a value head; ``key_size`` if ``None``.
          model_size: Size of the output; ``key_size * num_heads`` if ``None``.
          qk_norm: Kind of norm on queries and keys; none if ``None``.
          qk_norm_span: Whether it sees each ``"head"`` alone, with one scale for all,
            or ``"own_head"``, with a scale of its own, or ``"all_heads"`` of a token as
            one vector.
          norm_eps: Of that norm.
          rotary: Frequencies and factor of ``ops.rotary_frequencies``; rotates
            queries and keys.
          alibi: Whether logits fall with distance, steeper for each head.
          scale: Factor on logits; ``key_size ** -0.5`` if ``None``.
          softcap: Caps logits; none if ``None``.
          sliding_window: How many tokens back may be seen, the own included.
          dropout_rate: On attention weights, where the context is training.
          param_dtype: What parameters are stored in; the input's dtype if ``None``.
          name: Of the module.

        Raises:
          ValueError: ``num_kv_heads`` does not divide ``num_heads``, or a name in
            ``with_bias`` is no projection.
        """
        super().__init__(name=name)
        check_kv_heads(num_heads, num_kv_heads)
        if isinstance(with_bias, bool):
            with_bias = PROJECTIONS if with_bias else ()
        for projection in with_bias:
            if projection not in PROJECTIONS:
                raise ValueError(
                    f"with_bias must name projections from {', '.join(PROJECTIONS)}, "
                    f"got {projection!r}"
                )
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.key_size = key_size
        self.value_size = value_size or key_size
        self.model_size = model_size or key_size * num_heads
        self.w_init = w_init
        self.with_bias = with_bias
        self.b_init = b_init
        self.qk_norm: Norm | None = qk_norm
        self.qk_norm_span: QKNormSpan = qk_norm_span
        self.norm_eps = norm_eps
        self.rotary = rotary
        self.alibi = alibi
        self.scale = scale
        self.softcap = softcap
        self.sliding_window = sliding_window
        self.dropout_rate = dropout_rate
        self.param_dtype = param_dtype

    @classmethod
    def from_config(
        cls, config: DecoderConfig, layer: int, name: str
    ) -> MultiQueryAttention:
        """Returns the attention of one layer of a decoder.

        Args:
          config: The decoder.
          layer: Which layer, from zero; they may differ in window and positions.
          name: Of the module.

        Returns:
          The module.
        """
        rotary = config.rotaries[layer]
        biases = (
            config.query_bias,
            config.key_bias,
            config.value_bias,
            config.output_bias,
        )
        return cls(
            config.num_heads,
            config.key_size,
            num_kv_heads=config.num_kv_heads,
            with_bias=[p for p, has in zip(PROJECTIONS, biases, strict=True) if has],
            value_size=config.value_size,
            model_size=config.d_model,
            qk_norm=config.norm if config.qk_norm else None,
            qk_norm_span=config.qk_norm_span,
            norm_eps=config.norm_eps,
            rotary=rotary
            and rotary_frequencies(config.rotary_size, *rotary, config.max_length),
            alibi=config.position_embedding == "alibi",
            scale=config.attn_scale,
            softcap=config.attn_logit_softcap,
            sliding_window=config.windows[layer],
            dropout_rate=config.attention_dropout,
            param_dtype=config.param_dtype,
            name=name,
        )

    @overload
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array: ...

    @overload
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        *,
        context: Context,
        cache: LayerCache | None = None,
    ) -> LayerOutput: ...

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        *,
        context: Context | None = None,
        cache: LayerCache | None = None,
    ) -> jax.Array | LayerOutput:
        """Attends; one call for training, prefill and decode.

        Args:
          query: ``[..., T, D]``; ``[B, T, D]`` with a context.
          key: ``[..., S, D]``, what keys are projected from.
          value: ``[..., S, D]``, what values are projected from.
          mask: bool ``[T, S]`` or ``[..., N or 1, T or 1, S]`` (also ``[B, T, S]``
            where there is one leading axis), True means may attend. With a context
            the context's mask counts.
          context: Who stands where and sees whom, inside a decoder.
          cache: The past of this layer, inside a decoder.

        Returns:
          ``[..., T, model_size]``, or a ``LayerOutput`` where a context was given.

        Raises:
          ValueError: The mask is not boolean or of another shape.
        """
        if context is not None:
            return self._attend(query, key, value, context.of(cache), cache)
        *leading, queries, _ = query.shape
        if not leading and mask is not None and mask.ndim == 3:
            mask = mask[None]  # [N, T, S] of Haiku's unbatched call
        if len(leading) > 1 and mask is not None and mask.ndim > 2:
            mask = _flatten_mask(mask, tuple(leading))
        query, key, value = (x.reshape(-1, *x.shape[-2:]) for x in (query, key, value))
        batch, keys = query.shape[0], key.shape[1]
        if mask is not None:
            mask = broadcast_mask(mask, batch, self.num_heads, queries, keys)
        output = self._attend(
            query, key, value, free_context(batch, queries, keys, mask), None
        )
        return output.x.reshape(*leading, queries, self.model_size)

    @hk.transparent
    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        context: Context,
        cache: LayerCache | None,
    ) -> LayerOutput:
        chex.assert_rank([query, key, value], 3)
        q, k, v = self._heads(query, key, value)  # [B, T, N, H] and [B, S, K, H]
        if self.qk_norm:
            q, k = self._normalize(q, "query_norm"), self._normalize(k, "key_norm")
        if self.rotary:
            # Keys of this call stand where its tokens stand, or, where there is no
            # decoder around, in their own order.
            here = context.positions if cache is not None else context.key_positions
            q = apply_rotary(q, context.positions, *self.rotary)
            k = apply_rotary(k, here, *self.rotary)
        if cache is not None and context.slots is not None:
            cache, k, v = self.remember(cache, context.slots, k, v)
        rate = self.dropout_rate if context.is_training else 0.0
        attended, weights = self.attend(
            q,
            k,
            v,
            self._mask(context),
            bias=self._bias(context),
            dropout_rate=rate,
            dropout_rng=hk.next_rng_key() if rate > 0 else None,
            return_weights=context.return_attention,
        )
        flat = attended.reshape(*attended.shape[:2], self.num_heads * self.value_size)
        x = self._layer(self.model_size, "linear")(flat)
        return LayerOutput(x, cache, weights)

    def remember(
        self, cache: LayerCache, slots: jax.Array, k: jax.Array, v: jax.Array
    ) -> tuple[LayerCache, jax.Array, jax.Array]:
        """Writes new keys and values to the past, and returns what is attended to.

        A method of its own, as ``attend`` is.

        Args:
          cache: The past of this layer.
          slots: int32 ``[B, T]``, where each token is kept.
          k: ``[B, T, K, H]``, after rotary positions.
          v: ``[B, T, K, v]``.

        Returns:
          The past after these tokens; keys ``[B, S, K, H]`` and values.
        """
        return cache.update(slots, k, v)

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None,
        *,
        return_weights: bool = False,
        **options: Any,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attends from queries to keys, between the projections.

        A method of its own, so that ``hk.intercept_methods`` finds queries, keys and
        values as heads: to look at them, or to say over which devices they go.

        Args:
          q: ``[B, T, N, H]``, after rotary positions.
          k: ``[B, S, K, H]``, likewise; the cache's, where there is one.
          v: ``[B, S, K, v]``.
          mask: bool, as ``ops.multi_query_attention``.
          return_weights: Whether weights are returned too.
          options: Of ``ops.multi_query_attention``.

        Returns:
          ``[B, T, N, v]``, and weights ``[B, N, T, S]`` or ``None``.
        """
        options |= {"scale": self.scale, "softcap": self.softcap}
        if return_weights:
            return multi_query_attention(q, k, v, mask, return_weights=True, **options)
        return multi_query_attention(q, k, v, mask, **options), None

    def _mask(self, context: Context) -> jax.Array | None:
        if self.sliding_window is None:
            return context.mask
        near = window_mask(context.distance, self.sliding_window)[:, None]
        return near if context.mask is None else context.mask & near

    def _bias(self, context: Context) -> jax.Array | None:
        if not self.alibi:
            return None
        behind = context.positions[:, :, None] - context.key_positions[:, None, :]
        slopes = alibi_slopes(self.num_heads)[None, :, None, None]
        return -jnp.asarray(slopes) * behind[:, None].astype(
            jnp.float32
        )  # [B, N, T, S]

    @hk.transparent
    def _heads(
        self, query: jax.Array, key: jax.Array, value: jax.Array
    ) -> list[jax.Array]:
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        sizes = (self.key_size, self.key_size, self.value_size)
        layers = [
            self._layer(count * size, name)
            for count, size, name in zip(heads, sizes, PROJECTIONS, strict=False)
        ]
        if query is key and key is value:
            flat = project(query, layers)
        else:
            inputs = (query, key, value)
            flat = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        return [
            x.reshape(*x.shape[:2], count, size)
            for x, count, size in zip(flat, heads, sizes, strict=True)
        ]

    @hk.transparent
    def _layer(self, output_size: int, name: str) -> Linear:
        return Linear(
            output_size,
            with_bias=name in self.with_bias,
            w_init=self.w_init,
            b_init=self.b_init,
            param_dtype=self.param_dtype,
            name=name,
        )

    @hk.transparent
    def _normalize(self, heads: jax.Array, name: str) -> jax.Array:
        norm = Normalization(
            self.qk_norm or "rms",
            eps=self.norm_eps,
            with_bias=False,
            by_head=self.qk_norm_span == "own_head",
            param_dtype=self.param_dtype,
            name=name,
        )
        if self.qk_norm_span == "all_heads":
            return norm(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)
        return norm(heads)


def _flatten_mask(mask: jax.Array, leading: tuple[int, ...]) -> jax.Array:
    """Returns ``[*leading, N, T, S]`` as ``[B, N, T, S]``."""
    if mask.ndim != len(leading) + 3:
        raise ValueError(
            f"mask must be [T, S] or [*leading, N or 1, T, S] with leading axes "
            f"{list(leading)}, got shape {list(mask.shape)}"
        )
    spread = jnp.broadcast_to(mask, (*leading, *mask.shape[-3:]))
    return spread.reshape(-1, *mask.shape[-3:])
