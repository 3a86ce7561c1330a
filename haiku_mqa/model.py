"""A decoder as a pair of pure functions, checked at the door."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.cache import KVCache, init_cache
from haiku_mqa.checks import check_call, check_params
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.language_model import DecoderLM, DecoderOutput

Params = Mapping[str, Mapping[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A config, wrapped by ``hk.transform`` into an init/apply pair.

    Both functions are pure: jit them, vmap them, differentiate them. Called outside
    a transformation they look at values too (token ids, positions, room in the
    cache) and refuse what is out of range; under jit, where values cannot be seen,
    an id out of range gives NaN and a token without room is dropped and flagged in
    ``cache.overflowed``. Two models of equal configs are equal.

    Attributes:
      config: What the decoder is.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> model = build(config)
      >>> tokens = jnp.array([[72, 101, 108, 108, 111]])
      >>> params = model.init(jax.random.key(0), tokens)
      >>> model.apply(params, None, tokens).logits.shape
      (1, 5, 256)
      >>> cache = model.init_cache(batch_size=1, max_length=8)
      >>> out = model.apply(params, None, tokens[:, :3], cache=cache)
      >>> out = model.apply(params, None, tokens[:, 3:], cache=out.cache)
      >>> out.cache.lengths.tolist()
      [5]
    """

    config: DecoderConfig

    def init(self, rng: jax.Array, tokens: jax.Array | None = None) -> dict[str, Any]:
        """Returns freshly drawn parameters.

        Args:
          rng: PRNG key.
          tokens: int32 ``[B, T]``, ignored but for its shape; one token if ``None``.

        Returns:
          Module path to parameter name to array, in the config's ``param_dtype``.
        """
        tokens = jnp.zeros((1, 1), jnp.int32) if tokens is None else tokens
        # Parameters do not depend on the length, and a short call traces faster.
        return dict(self._transformed.init(rng, tokens[:1, :1]))

    def apply(
        self,
        params: Params,
        rng: jax.Array | None,
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
          params: As ``init`` makes them; no more, no fewer.
          rng: PRNG key for dropout; ``None`` where nothing is dropped.
          tokens: int32 ``[B, T]``, ids from 0 to V - 1.
          positions: int32 ``[B, T]``, where tokens stand; by default they count from
            zero in their row or segment, and go on from the cache.
          segment_ids: int32 ``[B, T]``, for packed sequences: tokens see only their
            own segment.
          mask: bool ``[B, T]``, which tokens are real (padding may stand on either
            side), or ``[B, T, S]`` or ``[B, N, T, S]``, which pairs may attend, in
            addition to causality.
          cache: The past, from ``init_cache`` or an earlier call; S is then its
            capacity. It is not changed: the result has the next one.
          logits_at: int32 ``[B, M]``, at which of the T places logits are wanted;
            at all if ``None``, at none where M is 0.
          is_training: Whether dropout acts.
          return_attention: Whether attention weights are returned.
          return_hidden: Whether the vectors that logits are made from are returned,
            those of all T places whatever ``logits_at`` says.

        Returns:
          ``DecoderOutput``: float32 logits ``[B, T, V]``, the cache after these
          tokens or ``None``, attention weights or ``None``, and hidden vectors
          ``[B, T, D]`` or ``None``.

        Raises:
          ValueError: An argument does not fit; the message names it, its value, and
            what is allowed.
        """
        check_params(params, self.param_shapes)
        check_call(
            self.config,
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            mask=mask,
            cache=cache,
            logits_at=logits_at,
            has_rng=rng is not None,
            is_training=is_training,
        )
        return self._transformed.apply(
            params,
            rng,
            jnp.asarray(tokens, jnp.int32),
            positions=_as_array(positions, jnp.int32),
            segment_ids=_as_array(segment_ids, jnp.int32),
            mask=_as_array(mask, jnp.bool_),
            cache=cache,
            logits_at=_as_array(logits_at, jnp.int32),
            is_training=is_training,
            return_attention=return_attention,
            return_hidden=return_hidden,
        )

    def init_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        *,
        ring: bool = False,
    ) -> KVCache:
        """Returns an empty cache.

        Args:
          batch_size: B, rows.
          max_length: S, room for each row in tokens; the config's if ``None``.
          dtype: Of keys and values; the config's ``dtype`` if ``None``. ``"int8"``
            takes a quarter of float32's bytes, and rounds.
          ring: Whether a layer with a sliding window below S keeps its window, and
            not S tokens.

        Returns:
          The cache, a pytree.

        Raises:
          ValueError: A size is below one, or keys and values cannot be of that dtype.
        """
        length = self.config.max_length if max_length is None else max_length
        return init_cache(self.config, batch_size, length, dtype, ring=ring)

    @property
    def param_shapes(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes and dtypes of the parameters, without making them."""
        return _param_shapes(self.config)

    @property
    def _transformed(self) -> hk.Transformed:
        return _transform(self.config)


def build(config: DecoderConfig) -> Model:
    """Returns the model of a config.

    Args:
      config: What the decoder is.

    Returns:
      The model.

    Raises:
      ValueError: ``config`` is not a ``DecoderConfig``.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> build(config) == build(config)
      True
    """
    if not isinstance(config, DecoderConfig):
        raise ValueError(
            f"config must be a DecoderConfig, got {type(config).__name__}; "
            "DecoderConfig.from_dict reads plain data"
        )
    return Model(config)


def _as_array(values: Any, dtype: jax.typing.DTypeLike) -> jax.Array | None:
    return None if values is None else jnp.asarray(values, dtype)


@functools.lru_cache(maxsize=256)
def _transform(config: DecoderConfig) -> hk.Transformed:
    def forward(tokens: jax.Array, **arguments: Any) -> DecoderOutput:
        return DecoderLM(config)(tokens, **arguments)

    return hk.transform(forward)


@functools.lru_cache(maxsize=256)
def _param_shapes(
    config: DecoderConfig,
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    # Layers differ in what they see, never in their parameters; to trace one takes a
    # thirtieth of the time that thirty take.
    one = config.first_layers(1)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.eval_shape(_transform(one).init, rng, tokens)
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for module, leaves in traced.items():
        before, is_layer, rest = module.partition("/layer_0/")
        if is_layer:
            for layer in range(config.num_layers):
                shapes[f"{before}/layer_{layer}/{rest}"] = dict(leaves)
        else:
            shapes[module] = leaves
    return dict(sorted(shapes.items()))
