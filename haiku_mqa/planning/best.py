"""The best of the meshes that a number of devices can be."""

from __future__ import annotations

import dataclasses

from haiku_mqa.config import DecoderConfig
from haiku_mqa.planning.compiled import StageName
from haiku_mqa.planning.devices import Device
from haiku_mqa.planning.memory import Held, held
from haiku_mqa.planning.plan import Plan, least_seconds, make_plan
from haiku_mqa.sharding import mesh_sizes
from haiku_mqa.sharding.mesh import written

_MOST_COMPILED = 2  # meshes of one number of devices
_MOST_TENSOR = {"train": 8, "prefill": 64, "decode": 64}


@dataclasses.dataclass(frozen=True)
class _Sketch:
    """What is known, and guessed, of a mesh before anything is compiled for it."""

    mesh: str
    held: int
    seconds: float
    network: float

    @property
    def promised(self) -> float:
        return max(self.seconds, self.network)


def meshes_of(
    config: DecoderConfig, num_devices: int, *, batch: int, stage: StageName
) -> list[str]:
    """Returns the meshes of so many devices that divide a decoder and its rows.

    Only those that are worth a look: rows over one axis and the rest over ``tensor``,
    by powers of two, of at most 8 devices where it trains. To generate, ``fsdp`` would
    gather every matrix for each token.

    Args:
      config: Of the decoder.
      num_devices: How many there are.
      batch: B, rows.
      stage: What is done.

    Returns:
      Sizes of axes.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=4, d_model=64, d_ff=256)
      >>> meshes_of(config, 4, batch=2, stage="train")
      ['data=2,tensor=2', 'fsdp=2,tensor=2', 'tensor=4']
    """
    found: dict[str, None] = {}
    tensor = 1
    while tensor <= min(num_devices, _MOST_TENSOR[stage]):
        rows, rest = divmod(num_devices, tensor)
        divided = not (
            rest or batch % rows or config.num_heads % tensor or config.d_ff % tensor
        )
        for axis in ("data", "fsdp") if stage == "train" else ("data",):
            if divided and (axis == "data" or config.d_model % rows == 0):
                found[written({axis: rows, "tensor": tensor})] = None
        tensor *= 2
    return list(found)


def best_plan(
    config: DecoderConfig,
    num_devices: int,
    device: Device,
    *,
    batch: int,
    context: int,
    stage: StageName = "train",
) -> Plan | None:
    """Returns the plan of the fastest mesh of so many devices, of those that fit.

    What computing and memory take is known from shapes, and the network's part is
    guessed from them; at most two meshes, the most promising, are compiled for.

    Args:
      config: Of the decoder.
      num_devices: How many there are.
      device: What each is.
      batch: B, rows on all devices together.
      context: Tokens of each row.
      stage: What is done.

    Returns:
      The plan; of the mesh that needs least, where none fits into memory; ``None``
      where no mesh of so many devices divides the decoder and its rows.

    Raises:
      ValueError: There are fewer devices.

    Example:
      >>> from haiku_mqa.planning import DEVICES
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=4, d_model=64, d_ff=256)
      >>> best_plan(config, 1, DEVICES["h100"], batch=4, context=16).num_devices
      1
      >>> best_plan(config, 16, DEVICES["h100"], batch=1, context=16) is None
      True
    """
    meshes = meshes_of(config, num_devices, batch=batch, stage=stage)
    sketches = [_sketch(config, mesh, device, stage, batch, context) for mesh in meshes]
    roomy = [each for each in sketches if each.held <= device.memory]
    if not roomy:
        roomy = sorted(sketches, key=lambda each: each.held)[:1]
    best: Plan | None = None
    for each in sorted(roomy, key=lambda each: each.promised)[:_MOST_COMPILED]:
        if best and _rank(best) <= (False, each.seconds):
            continue  # not even with a network that takes no time
        plan = make_plan(
            config,
            each.mesh,
            device,
            batch=batch,
            context=context,
            stages=(stage,),
            all_layers=False,
        )
        best = min(best or plan, plan, key=_rank)
    return best


def _sketch(
    config: DecoderConfig,
    mesh: str,
    device: Device,
    stage: StageName,
    batch: int,
    context: int,
) -> _Sketch:
    kept = held(config, mesh, batch=batch, context=context)
    taken = least_seconds(stage, config, mesh, device, kept, batch, context)
    sent = _guess_sent(config, mesh, stage, kept, batch, context)
    least = kept.training if stage == "train" else kept.params + kept.cache
    return _Sketch(mesh, least, max(taken), sent / device.network)


def _guess_sent(
    config: DecoderConfig,
    mesh: str,
    stage: StageName,
    kept: Held,
    batch: int,
    context: int,
) -> float:
    """Returns roughly what a device sends: enough to choose what to compile for.

    Two sums of activations a layer over ``tensor``, three times that in training; and
    there the sum of gradients, which are a third of what each device has, over
    ``data``, or over ``fsdp`` with matrices gathered twice.
    """
    sizes = mesh_sizes(mesh)
    tensor, rows = sizes["tensor"], batch // (sizes["data"] * sizes["fsdp"])
    length = 1 if stage == "decode" else context
    activations = 4 * rows * length * config.d_model * config.num_layers
    sent = 4 * activations * (tensor - 1) / tensor
    if stage != "train":
        return sent
    gradients = kept.training / 3
    over_rows = 2 * (sizes["data"] > 1) + 3 * (sizes["fsdp"] - 1)
    return 3 * sent + over_rows * gradients


def _rank(plan: Plan) -> tuple[bool, float]:
    stage = plan.stages[0]
    fits = plan.fits(stage)
    return not fits, stage.seconds if fits else stage.held
