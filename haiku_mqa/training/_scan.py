"""Layers as one loop over stacked parameters, in a program that does not grow with L.

Parameters are stacked inside of the loss, so that what it is given, and what its
gradient is, stays one array for each layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Params
from haiku_mqa.modules.block import TransformerDecoderBlock
from haiku_mqa.modules.context import Context, LayerOutput

_NAME = "block"  # of each block that the loop calls, outside of any decoder


def repeating_layers(config: DecoderConfig) -> tuple[int, int]:
    """Returns the shortest pattern that a decoder's layers repeat.

    Layers differ in nothing but their window and their rotary positions. The last
    repetition need not be whole.

    Args:
      config: The decoder.

    Returns:
      How many layers the pattern has, and how often it occurs as a whole.

    Raises:
      ValueError: It occurs once, so that there is nothing to loop over.

    Example:
      >>> sizes = {"vocab_size": 256, "num_heads": 2, "d_model": 8, "d_ff": 16}
      >>> repeating_layers(DecoderConfig(num_layers=12, **sizes))
      (1, 12)
      >>> windows = (64, None, 64, None, 64)
      >>> repeating_layers(
      ...     DecoderConfig(num_layers=5, sliding_window=windows, **sizes))
      (2, 2)
    """
    period, layers = config.layer_period, config.num_layers
    times = layers // period
    if times == 1 < layers:
        raise ValueError(
            "scan_layers needs layers that repeat: the pattern of sliding_window, "
            "rope_theta and rope_scaling must occur at least twice in "
            f"num_layers = {layers} layers, got {config.layer_kinds}"
        )
    return period, times


@contextlib.contextmanager
def scanned_layers(config: DecoderConfig, remat: bool) -> Iterator[None]:
    """Has every decoder that is called inside run its layers in one loop.

    By interception, so that no block knows of it: the first block of a stack runs
    all of them, and the others return what they are given.

    Args:
      config: The decoder, whose layers must repeat.
      remat: Whether blocks are computed again when they are differentiated.
    """
    period, times = repeating_layers(config)

    def instead(
        block: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: hk.MethodContext,
    ) -> Any:
        module = context.module
        is_block = isinstance(module, TransformerDecoderBlock)
        # Within a call a model may work out its parameters' shapes, by initializing.
        if not is_block or context.method_name != "__call__" or hk.running_init():
            return block(*args, **kwargs)
        stack, _, _ = module.module_name.rpartition("/")
        if not stack:
            return block(*args, **kwargs)  # one of those that the loop calls
        (x,) = args
        if module.layer == 0:
            x = _run(module.config, stack, x, kwargs["context"], period, times, remat)
        return LayerOutput(x, cache=None, attention=None)

    with hk.intercept_methods(instead):
        yield


def _run(
    config: DecoderConfig,
    stack: str,
    x: jax.Array,
    context: Context,
    period: int,
    times: int,
    remat: bool,
) -> jax.Array:
    every = hk.get_params()
    params = [
        _params_below(every, f"{stack}/layer_{layer}")
        for layer in range(config.num_layers)
    ]
    rng = hk.maybe_next_rng_key()
    # Each layer its own, or all would drop alike.
    rngs = None if rng is None else jax.random.split(rng, config.num_layers)
    looped = period * times if times > 1 else 0

    def body(x: jax.Array, pattern: tuple[Any, Any]) -> tuple[jax.Array, None]:
        params, rngs = pattern
        for layer in range(period):
            # A loop's body is compiled apart: nothing that is computed again could be
            # taken for what was computed before, and no barrier has to say so.
            run = _block(config, layer, context, remat, prevent_cse=False)
            x = run(params[layer], None if rngs is None else rngs[layer], x)
        return x, None

    if looped:
        stacked = [
            jax.tree.map(lambda *p: jnp.stack(p), *params[layer:looped:period])
            for layer in range(period)
        ]
        parted = None
        if rngs is not None:
            parted = rngs[:looped].reshape(times, period, *rngs.shape[1:])
        x, _ = jax.lax.scan(body, x, (stacked, parted))
    for layer in range(looped, config.num_layers):
        run = _block(config, layer, context, remat, prevent_cse=True)
        x = run(params[layer], None if rngs is None else rngs[layer], x)
    return x


def _block(
    config: DecoderConfig,
    layer: int,
    context: Context,
    remat: bool,
    prevent_cse: bool,
) -> Callable[[Params, jax.Array | None, jax.Array], jax.Array]:
    """Returns a layer as a pure function of its parameters, an rng and x."""

    def forward(x: jax.Array) -> jax.Array:
        block = TransformerDecoderBlock(config, layer, name=_NAME)
        return block(x, context=context).x

    apply = hk.transform(forward).apply
    return jax.checkpoint(apply, prevent_cse=prevent_cse) if remat else apply


def _params_below(params: Params, path: str) -> dict[str, Mapping[str, jax.Array]]:
    """Returns the parameters of one block under the name that the loop calls it."""
    return {
        _NAME + module.removeprefix(path): leaves
        for module, leaves in params.items()
        if module.startswith(f"{path}/")
    }
