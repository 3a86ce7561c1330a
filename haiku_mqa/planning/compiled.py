"""What programs need between their arguments and results, from compiling them.

Layers are alike, or repeat a pattern of windows, so that programs of two layers and of
three tell what each more costs: a decoder of a hundred is compiled in the time that
five take. One layer would tell less: in its place, no other's room is free to be used
again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import unknown_name
from haiku_mqa.model import build
from haiku_mqa.planning.collectives import KINDS, Traffic, traffic_of
from haiku_mqa.sharding import ShardedModel, shard
from haiku_mqa.sharding.layout import CacheSplit
from haiku_mqa.training import (
    Batch,
    OptimizerConfig,
    init_train_state,
    make_train_step,
)
from haiku_mqa.training.step import TrainStep

StageName = Literal["train", "prefill", "decode"]
_FEW = 2  # patterns of layers in the smaller of two programs


@dataclasses.dataclass(frozen=True)
class Work:
    """What one run of a program needs on each device.

    Attributes:
      arguments: Bytes that it is given.
      temporaries: Bytes that it needs beside them, at most.
      results: Bytes of what it returns in no argument's place.
      traffic: What it sends to the others.

    Example:
      >>> Work(arguments=8, temporaries=4, results=2, traffic=Traffic({})).held
      14
    """

    arguments: float
    temporaries: float
    results: float
    traffic: Traffic

    @property
    def held(self) -> float:
        """Bytes of all of them."""
        return self.arguments + self.temporaries + self.results


def compiled_work(
    config: DecoderConfig,
    mesh: str | Mesh,
    stage: StageName,
    *,
    batch: int,
    context: int,
    cache_split: CacheSplit = "auto",
    optimizer: OptimizerConfig | None = None,
    all_layers: bool = True,
) -> Work:
    """Returns what a stage needs, without running it.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes, or a mesh, of devices that JAX sees: on a CPU as many as
        ``JAX_NUM_CPU_DEVICES`` says.
      stage: ``"train"`` is a step, ``"prefill"`` reads prompts of ``context`` tokens,
        ``"decode"`` one token a row with as many before it.
      batch: B, rows.
      context: T or S, tokens.
      cache_split: What of a cache goes over ``tensor``.
      optimizer: Of training; AdamW if ``None``.
      all_layers: Whether training, whose layers are one loop, is compiled with all of
        them; else it is continued, as the other stages are: sooner, less exactly.

    Returns:
      Its needs, of which those between arguments are the compiler's for this backend.

    Raises:
      ValueError: There is no such stage, or the mesh does not divide the decoder.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=8, num_heads=8, d_model=64, d_ff=256)
      >>> work = compiled_work(config, "data=1", "decode", batch=2, context=8)
      >>> work.traffic.total, work.temporaries > 0
      (0, True)
    """
    if stage not in get_args(StageName):
        raise unknown_name("stage", str(stage), get_args(StageName))

    def of_first(num_layers: int) -> Work:
        layers = build(config.first_layers(num_layers))
        model = shard(layers, mesh, cache_split=cache_split)
        return _of_model(model, stage, batch, context, optimizer or OptimizerConfig())

    period = config.layer_period
    few = _FEW * period
    is_whole = stage == "train" and all_layers and _is_loop(config)
    if is_whole or config.num_layers <= few + period:
        return of_first(config.num_layers)
    more = (config.num_layers - few) / period
    return _continued(of_first(few), of_first(few + period), more)


def _continued(first: Work, last: Work, more: float) -> Work:
    """Returns what more patterns of layers need, from a program with one more.

    All of it is a sum over layers. That the most that is held at a time is one, too,
    is so where the same moment of the program needs most, whatever its length.
    """

    def line(one: float, two: float) -> float:
        return one + more * (two - one)

    sent = {
        kind: line(first.traffic.sent.get(kind, 0.0), last.traffic.sent.get(kind, 0.0))
        for kind in KINDS
        if kind in first.traffic.sent or kind in last.traffic.sent
    }
    return Work(
        line(first.arguments, last.arguments),
        line(first.temporaries, last.temporaries),
        line(first.results, last.results),
        Traffic(sent),
    )


def _of_model(
    model: ShardedModel,
    stage: StageName,
    batch: int,
    context: int,
    optimizer: OptimizerConfig,
) -> Work:
    compiled = lowered(model, stage, batch, context, optimizer).compile(
        COMPILER_OPTIONS
    )
    memory = compiled.memory_analysis()
    return Work(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        # A donated argument's place is taken by a result, and counts once.
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        traffic_of(compiled.as_text()),
    )


def lowered(
    model: ShardedModel,
    stage: StageName,
    batch: int,
    context: int,
    optimizer: OptimizerConfig,
) -> Any:
    """Returns a stage's program, to be compiled: the one that is run, with all layers.

    Args:
      model: Over its mesh.
      stage: Which.
      batch: B, rows.
      context: T or S, tokens.
      optimizer: Of training.
    """
    lower = {"train": _train, "prefill": _prefill, "decode": _decode}[stage]
    return lower(model, batch, context, optimizer)


def _train(
    model: ShardedModel, batch: int, context: int, optimizer: OptimizerConfig
) -> Any:
    model.check_rows(batch)
    params = model.param_shapes
    state = _placed(
        jax.eval_shape(lambda p: init_train_state(optimizer, p), params),
        model.layout.state,
    )
    tokens: Any = jax.ShapeDtypeStruct((batch, context), jnp.int32)
    rows = _placed(Batch(tokens, tokens, mask=None), model.layout.batch)
    step = planned_step(model, optimizer)
    return jax.jit(step, donate_argnums=0).lower(state, rows, None)


def planned_step(model: ShardedModel, optimizer: OptimizerConfig) -> TrainStep:
    """Returns the step of training that is planned: blocks are computed again.

    Where layers repeat they are one loop, whose body is computed again when it is
    needed and not before: of what stands in no loop, XLA for a CPU computes everything
    as early as it can, and holds it.

    Args:
      model: Over its mesh.
      optimizer: What moves its parameters.
    """
    return make_train_step(
        model,
        optimizer,
        compute_dtype=model.config.dtype,
        remat=True,
        scan_layers=_is_loop(model.config),
    )


def _is_loop(config: DecoderConfig) -> bool:
    return 2 * config.layer_period <= config.num_layers


def _prefill(model: ShardedModel, batch: int, context: int, _: Any) -> Any:
    return _read(model, batch, context, context)


def _decode(model: ShardedModel, batch: int, context: int, _: Any) -> Any:
    return _read(model, batch, 1, context)


def _read(model: ShardedModel, batch: int, length: int, context: int) -> Any:
    layout = model.layout
    params = _placed(model.param_shapes, layout.params)
    cache = jax.eval_shape(lambda: model.init_cache(batch, context))
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    last = jnp.full((batch, 1), length - 1, jnp.int32)

    def read(params: Any, tokens: Any, cache: Any) -> Any:
        out = model.apply(params, None, tokens, cache=cache, logits_at=last)
        return out.logits, out.cache

    return jax.jit(read, donate_argnums=2).lower(
        params, _placed(tokens, layout.batch), _placed(cache, layout.cache)
    )


def _placed(shapes: Any, layout: Callable[[Any], Any]) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        layout(shapes),
    )
