"""A stack of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import haiku as hk
import jax
from haiku._src.base import param_getter_stack
from haiku._src.module import interceptor_stack
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
        is_repeated = self._is_repeated(x, context, layers)
        run = self._traced_once() if is_repeated else self._run
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
    def _is_repeated(
        self, x: jax.Array, context: Context, layers: tuple[LayerCache, ...] | None
    ) -> bool:
        """Returns whether blocks that are alike are traced once, and called again.

        The program is the same, and that of thirty layers is there in a tenth of the
        time. It is done only where text is generated, which is with a cache, and not
        where someone watches modules as they run, and should see each by its own name.
        """
        # Haiku has no public word for whether there is such a one.
        is_watched = bool(interceptor_stack) or bool(param_getter_stack)
        is_traced = isinstance(x, Tracer) and not hk.running_init()
        reads_on = layers is not None and not context.is_training
        return reads_on and is_traced and not is_watched

    @hk.transparent
    def _traced_once(self) -> Callable[..., LayerOutput]:
        # Made anew for every call: what jax traced under other circumstances is not
        # to be found again.
        kinds = self.config.layer_kinds
        blocks = {
            kind: _pure_block(self.config, kinds.index(kind)) for kind in set(kinds)
        }
        params = hk.get_params()

        def run(
            layer: int, x: jax.Array, context: Context, cache: LayerCache | None
        ) -> LayerOutput:
            own = f"{self.module_name}/layer_{layer}/"
            block = blocks[kinds[layer]]
            return block(_below(own, params), x, context, cache)

        return run


_ANY_LAYER = "layer"


def _below(own: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{_ANY_LAYER}/{module.removeprefix(own)}": leaves
        for module, leaves in params.items()
        if module.startswith(own)
    }


def _pure_block(config: DecoderConfig, layer: int) -> Callable[..., LayerOutput]:
    """Returns the blocks of a layer's kind as a pure function of their parameters."""

    def block(x: jax.Array, context: Context, cache: LayerCache | None) -> LayerOutput:
        module = TransformerDecoderBlock(config, layer, name=_ANY_LAYER)
        return module(x, context=context, cache=cache)

    transformed = hk.transform(block)

    @jax.jit
    def pure(
        params: Mapping[str, Any],
        x: jax.Array,
        context: Context,
        cache: LayerCache | None,
    ) -> LayerOutput:
        return transformed.apply(params, None, x, context, cache)

    return pure
