"""What each device holds, counted from shapes: nothing is made, or compiled."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Model
from haiku_mqa.sharding import AXES, Layout, mesh_sizes
from haiku_mqa.sharding.layout import CacheSplit
from haiku_mqa.training import OptimizerConfig, init_train_state


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes that the fullest device holds from one step to the next.

    Attributes:
      params: Parameters in the config's ``param_dtype``.
      training: Masters and the optimizer's state, float32.
      cache: Of the keys and values of a batch.

    Example:
      >>> Held(params=4, training=12, cache=2).training
      12
    """

    params: int
    training: int
    cache: int


def layout_of(
    config: DecoderConfig, mesh: str | Mesh, cache_split: CacheSplit = "auto"
) -> Layout:
    """Returns what would lie where; devices need not be there.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes, or a mesh.
      cache_split: What of a cache goes over ``tensor``.
    """
    if isinstance(mesh, str):
        axes = AbstractMesh(tuple(mesh_sizes(mesh).values()), AXES)
        return Layout(config, axes, (), cache_split)
    return Layout(config, mesh, (), cache_split)


def held(
    config: DecoderConfig,
    mesh: str | Mesh,
    *,
    batch: int,
    context: int,
    cache_split: CacheSplit = "auto",
    optimizer: OptimizerConfig | None = None,
) -> Held:
    """Returns what each device holds.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes, such as ``"data=16,tensor=8"``, or a mesh.
      batch: B, rows.
      context: S, tokens that a row's cache has room for.
      cache_split: What of a cache goes over ``tensor``, as ``sharding.Layout``.
      optimizer: Of training; AdamW if ``None``.

    Returns:
      The bytes.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> one, two = (held(config, f"tensor={n}", batch=1, context=8) for n in (1, 2))
      >>> one.params // 1000, two.params // 1000
      (533, 271)
    """
    layout, model = layout_of(config, mesh, cache_split), Model(config)
    params = model.param_shapes
    state = jax.eval_shape(
        lambda p: init_train_state(optimizer or OptimizerConfig(), p), params
    )
    cache = jax.eval_shape(lambda: model.init_cache(batch, context))
    return Held(
        params=on_one(params, layout.params(params)),
        training=on_one(state, layout.state(state)),
        cache=on_one(cache, layout.cache(cache)),
    )


def on_one(shapes: Any, where: Any) -> int:
    """Returns how many bytes of a tree lie on each device.

    Args:
      shapes: Shapes and dtypes.
      where: For each its sharding.
    """
    sizes = jax.tree.map(
        lambda leaf, sharding: (
            math.prod(sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        ),
        shapes,
        where,
    )
    return sum(jax.tree.leaves(sizes))


def longest_context(
    config: DecoderConfig,
    mesh: str | Mesh,
    *,
    batch: int,
    room: float,
    cache_split: CacheSplit = "auto",
) -> int:
    """Returns how many tokens of each row fit into a device's room for caches.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes, or a mesh.
      batch: B, rows.
      room: Bytes on each device.
      cache_split: What of a cache goes over ``tensor``.

    Returns:
      Tokens; the model's own longest context is not looked at.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> longest_context(config, "tensor=1", batch=1, room=2**20)
      7710
    """
    one, two = (
        held(config, mesh, batch=batch, context=n, cache_split=cache_split).cache
        for n in (1, 2)
    )
    return max(0, 1 + math.floor((room - one) / (two - one)))


def largest_batch(
    config: DecoderConfig,
    mesh: str | Mesh,
    *,
    context: int,
    room: float,
    cache_split: CacheSplit = "auto",
) -> int:
    """Returns how many rows fit, in steps that the mesh divides.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes, or a mesh.
      context: S, tokens of each row.
      room: Bytes on each device.
      cache_split: What of a cache goes over ``tensor``.

    Returns:
      Rows.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> largest_batch(config, "data=2", context=64, room=2**20)
      240
    """
    shape = layout_of(config, mesh).mesh.shape
    step = math.prod(shape[axis] for axis in AXES)
    taken = held(config, mesh, batch=step, context=context, cache_split=cache_split)
    return step * max(0, math.floor(room / taken.cache))
