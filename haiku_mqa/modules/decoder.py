"""A stack of blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import haiku as hk
import jax
from jax.core import Tracer

from haiku_mqa.cache import LayerCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.block import TransformerDecoderBlock
from haiku_mqa.modules.context import Context, LayerOutput, free_context
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

    def __init__(
        self,
        config: DecoderConfig,
        *,
        shares_trace: bool = False,
        name: str | None = None,
    ):
        """Describes the stack.

        Args:
          config: Says how many blocks, and which.
          shares_trace: Whether jax traces blocks that are alike once and calls that for
            each of them: the program is the same, and there in a fifth of the time.
            Whoever watches modules as they run (``hk.intercept_methods``) then sees
            one block.
          name: Of the module.
        """
        super().__init__(name=name)
        self.config = config
        self.shares_trace = shares_trace

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
        # While parameters are made, dropout draws or nothing is traced, each block
        # runs as the module that it is.
        shares = (
            self.shares_trace
            and isinstance(x, Tracer)
            and not hk.running_init()
            and not context.is_training
        )
        run = self._run_shared if shares else self._run
        for layer in range(self.config.num_layers):
            output = run(layer, x, context, layers[layer] if layers else None)
            x = output.x
            if output.cache is not None:
                after.append(output.cache)
            if output.attention is not None:
                attention.append(output.attention)
        if self.config.final_norm:
            x = Normalization.from_config(self.config, "final_norm")(x)
        return StackOutput(x, tuple(after) or None, tuple(attention) or None)

    @hk.transparent
    def _run(
        self, layer: int, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> LayerOutput:
        block = TransformerDecoderBlock(self.config, layer, name=f"layer_{layer}")
        return block(x, context=context, cache=cache)

    @hk.transparent
    def _run_shared(
        self, layer: int, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> LayerOutput:
        own = f"{self.module_name}/layer_{layer}/"
        params = {
            f"{_ANY_LAYER}/{module.removeprefix(own)}": leaves
            for module, leaves in hk.get_params().items()
            if module.startswith(own)
        }
        block = _block_of(self.config, self.config.windows[layer])
        return block(params, x, context, cache)


_ANY_LAYER = "layer"


@functools.lru_cache(maxsize=256)
def _block_of(config: DecoderConfig, window: int | None) -> Callable[..., LayerOutput]:
    """Returns the blocks of one window as a pure function, for jax to trace once."""

    def block(x: jax.Array, context: Context, cache: LayerCache | None) -> LayerOutput:
        layer = config.windows.index(window)
        module = TransformerDecoderBlock(config, layer, name=_ANY_LAYER)
        return module(x, context=context, cache=cache)

    transformed = hk.transform(block)

    @jax.jit
    def layer(
        params: Mapping[str, Mapping[str, Any]],
        x: jax.Array,
        context: Context,
        cache: LayerCache | None,
    ) -> LayerOutput:
        return transformed.apply(params, None, x, context, cache)

    return layer
