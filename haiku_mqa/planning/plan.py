"""A plan: what a decoder on a mesh of some devices holds, sends and takes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.planning.compiled import StageName, Work, compiled_work
from haiku_mqa.planning.devices import Device
from haiku_mqa.planning.memory import Held, held, largest_batch, longest_context
from haiku_mqa.sharding import mesh_sizes
from haiku_mqa.sharding.layout import CacheSplit

STAGES: tuple[StageName, ...] = ("train", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one step of training, one reading or one token a row takes.

    Attributes:
      name: Which.
      tokens: How many are worked on, on all devices.
      held: Bytes on each device, temporaries included.
      sent: Bytes that each device sends.
      compute: Seconds, if nothing but products counted.
      memory: Seconds to read what must be read.
      network: Seconds to send what is sent.

    Example:
      >>> stage = Stage("decode", 8, 1.0, 0.0, compute=1.0, memory=4.0, network=2.0)
      >>> stage.seconds, stage.binds, stage.tokens_per_second
      (4.0, 'memory', 2.0)
    """

    name: StageName
    tokens: int
    held: float
    sent: float
    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Of the slowest of the three, the others hidden behind it."""
        return max(self.compute, self.memory, self.network)

    @property
    def binds(self) -> str:
        """Which of the three that is."""
        times = {n: getattr(self, n) for n in ("compute", "memory", "network")}
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_second(self) -> float:
        """On all devices together."""
        return self.tokens / self.seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a decoder on a mesh would take.

    Attributes:
      config: Of the decoder.
      mesh: Axis to size.
      device: What each device is.
      batch: B, rows.
      context: Tokens of each row.
      held: Bytes that stay on each device.
      stages: What each takes.
      longest_context: Tokens of so many rows that fit beside the parameters.
      largest_batch: Rows of so many tokens that do.
    """

    config: DecoderConfig
    mesh: dict[str, int]
    device: Device
    batch: int
    context: int
    held: Held
    stages: tuple[Stage, ...]
    longest_context: int
    largest_batch: int

    @property
    def num_devices(self) -> int:
        """How many devices there are."""
        return math.prod(self.mesh.values())

    def fits(self, stage: Stage) -> bool:
        """Returns whether a stage fits into each device.

        Args:
          stage: One of them.
        """
        return stage.held <= self.device.memory

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data that JSON can hold."""
        return {
            "model": self.config.to_dict(),
            "mesh": self.mesh,
            "device": dataclasses.asdict(self.device),
            "batch": self.batch,
            "context": self.context,
            "held": dataclasses.asdict(self.held),
            "longest_context": self.longest_context,
            "largest_batch": self.largest_batch,
            "stages": [
                dataclasses.asdict(stage)
                | {
                    "seconds": stage.seconds,
                    "binds": stage.binds,
                    "tokens_per_second": stage.tokens_per_second,
                    "fits": self.fits(stage),
                }
                for stage in self.stages
            ],
        }


def make_plan(
    config: DecoderConfig,
    mesh: str,
    device: Device,
    *,
    batch: int,
    context: int,
    stages: tuple[StageName, ...] = STAGES,
    cache_split: CacheSplit = "auto",
    all_layers: bool = True,
) -> Plan:
    """Returns what a decoder on a mesh would take, from shapes and compiled programs.

    Args:
      config: Of the decoder.
      mesh: Sizes of axes. So many devices must be there to compile for, virtual ones
        too: ``JAX_NUM_CPU_DEVICES`` has JAX make them.
      device: What each would be.
      batch: B, rows.
      context: Tokens of each row.
      stages: Which to plan for.
      cache_split: What of a cache goes over ``tensor``.
      all_layers: As ``compiled_work`` takes it.

    Returns:
      The plan.

    Raises:
      ValueError: There are too few devices, or the mesh does not divide the decoder.

    Example:
      >>> from haiku_mqa.planning import DEVICES
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=8, num_heads=8, d_model=64, d_ff=256)
      >>> plan = make_plan(config, "data=1", DEVICES["h100"], batch=8, context=16,
      ...     stages=("decode",))
      >>> plan.stages[0].binds
      'memory'
    """
    kept = held(config, mesh, batch=batch, context=context, cache_split=cache_split)
    made = []
    for name in stages:
        work = compiled_work(
            config,
            mesh,
            name,
            batch=batch,
            context=context,
            cache_split=cache_split,
            all_layers=all_layers,
        )
        made.append(_stage(name, config, mesh, device, kept, work, batch, context))
    room = device.memory - kept.params
    return Plan(
        config,
        mesh_sizes(mesh),
        device,
        batch,
        context,
        kept,
        tuple(made),
        longest_context(config, mesh, batch=batch, room=room, cache_split=cache_split),
        largest_batch(
            config, mesh, context=context, room=room, cache_split=cache_split
        ),
    )


def _stage(
    name: StageName,
    config: DecoderConfig,
    mesh: str,
    device: Device,
    kept: Held,
    work: Work,
    batch: int,
    context: int,
) -> Stage:
    compute, memory = least_seconds(name, config, mesh, device, kept, batch, context)
    return Stage(
        name,
        tokens=batch * (1 if name == "decode" else context),
        held=work.held,
        sent=work.traffic.total,
        compute=compute,
        memory=memory,
        network=work.traffic.total / device.network,
    )


def least_seconds(
    name: StageName,
    config: DecoderConfig,
    mesh: str,
    device: Device,
    kept: Held,
    batch: int,
    context: int,
) -> tuple[float, float]:
    """Returns what a stage takes at least, known before anything is compiled.

    Args:
      name: Of the stage.
      config: Of the decoder.
      mesh: Sizes of axes.
      device: What each device is.
      kept: What each holds.
      batch: B, rows.
      context: Tokens of each row.

    Returns:
      Seconds of computing, and of reading memory.
    """
    devices = math.prod(mesh_sizes(mesh).values())
    length = 1 if name == "decode" else context
    # Causal: a token sees half of its row on average, a new one all of it.
    seen = context if name == "decode" else context / 2
    products = operations(config, seen, is_training=name == "train") * batch * length
    # Masters and moments are read and written.
    traffic = 2 * kept.training if name == "train" else kept.params + kept.cache
    return products / devices / device.compute, traffic / device.bandwidth


def operations(
    config: DecoderConfig, seen: float, *, is_training: bool = False
) -> float:
    """Returns the operations of products for one token.

    Args:
      config: Of the decoder.
      seen: How many tokens it attends to.
      is_training: Whether gradients are computed too: as many again for what a product
        is given, as many for its matrix, and blocks once more for what was not kept.

    Returns:
      Two for each number of a matrix, and for each product of attention.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=8, num_layers=1, num_heads=2, d_model=4, d_ff=8)
      >>> operations(config, 0.0), operations(config, 0.0, is_training=True)
      (352.0, 1344.0)
    """
    d, heads = config.d_model, config.num_heads
    attention = d * (config.key_size * (heads + config.num_kv_heads))
    attention += d * config.value_size * (heads + config.num_kv_heads)
    feed_forward = d * config.d_ff * (3 if config.gated else 2)
    looks = heads * (config.key_size + config.value_size) * seen
    layers = config.num_layers * (attention + feed_forward + looks)
    again, once = (4, 3) if is_training else (1, 1)
    return 2.0 * (again * layers + once * d * config.vocab_size)
