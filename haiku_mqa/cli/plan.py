"""``haiku-mqa plan``: what a mesh of devices would cost, before it is paid for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli import _options, _plan_devices
from haiku_mqa.cli._devices import have_devices
from haiku_mqa.cli._files import check_writable, replacing
from haiku_mqa.cli._models import check_name, fetched
from haiku_mqa.cli._screen import say, seconds, size, table
from haiku_mqa.config import DecoderConfig

if TYPE_CHECKING:
    from haiku_mqa.planning import Plan, Stage

_MOST_DEVICES = 512  # virtual ones, that programs are compiled for here

_DESCRIPTION = """\
Tell what each device of a mesh would hold, send and take to train a decoder, to read
prompts and to generate. Parameters, optimizer and cache are counted from shapes; what
is needed in between, and what devices send each other, is read out of programs that
are compiled for so many devices, and never run. Time is that of the slowest of
computing, memory and network at the maker's figures, with the others hidden behind it:
a bound that no program passes.

With --plot it tells, and draws, the time and the cost of a step on 1, 2, 4 ... devices,
each number of them as the fastest mesh that fits into memory, for one stage. Only some
meshes are looked at: rows over data or fsdp, the rest over tensor; and at most two of a
number are compiled for, the most promising by what is known without. It takes minutes.
"""

_EPILOG = """\
examples:
  haiku-mqa plan --model llama-3-8b --mesh fsdp=8 --device h100
  haiku-mqa plan --model palm-540b --mesh tensor=64 --device tpu-v4 --stages decode \\
    --batch 128 --context 2048
  haiku-mqa plan --model runs/first --mesh data=2 --batch 64 --json plan.json
  haiku-mqa plan --model llama-3-8b --batch 64 --plot devices.png --price 2.5

presets:
  {presets}
devices:
  {devices}
"""
_PRESETS = ("llama-2-7b", "llama-3-8b", "llama-3-70b", "falcon-7b", "palm-540b")
_DEVICES = ("a100", "h100", "h200", "tpu-v4", "tpu-v5e", "tpu-v5p")
_STAGES = ("train", "prefill", "decode")


def add_parser(verbs: Any) -> None:
    """Adds the verb ``plan``."""
    parser = _options.add_verb(
        verbs,
        "plan",
        help="tell what a mesh of devices would hold, send and take",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG.format(presets=", ".join(_PRESETS), devices=", ".join(_DEVICES)),
    )
    parser.add_argument(
        "--model",
        metavar="PRESET_OR_MODEL",
        default="llama-3-8b",
        help="a preset, a name that 'zoo list' shows, a file or a folder (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="sizes of data, fsdp and tensor, such as data=16,tensor=8 (default: one "
        "device; --plot chooses)",
    )
    parser.add_argument(
        "--device",
        choices=_DEVICES,
        metavar="DEVICE",
        default="h100",
        help="what each device is (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=_options.whole(1),
        metavar="N",
        help="rows on all devices together (default: one on each; 64 with --plot)",
    )
    parser.add_argument(
        "--context",
        type=_options.whole(1),
        metavar="N",
        help="tokens of each row (default: the model's longest, at most 2,048)",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=_STAGES,
        metavar="STAGE",
        help="train, prefill, decode: what to plan for (default: all; train with "
        "--plot, which takes one)",
    )
    parser.add_argument(
        "--cache-split",
        choices=("auto", "heads", "rows"),
        metavar="HOW",
        default="auto",
        help="heads, rows or auto: what of a cache goes over tensor (default: auto)",
    )
    parser.add_argument("--json", metavar="FILE", help="write every figure to a file")
    _plan_devices.add_options(parser, _MOST_DEVICES)


def run(args: argparse.Namespace) -> int:
    """Prints a plan.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model, the mesh does not divide it, or options do
        not go together.
      OSError: A file cannot be written.
    """
    if args.json is not None:
        check_writable(Path(args.json))
    if args.plot is not None:
        _plan_devices.check(args)
        told = _over_devices(args)
    else:
        told = _of_one_mesh(args)
    if args.json is not None:
        with replacing(Path(args.json)) as file:
            file.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _of_one_mesh(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the plan of a mesh, and returns its figures."""
    from haiku_mqa.sharding import mesh_sizes

    args.mesh = args.mesh or "data=1"
    args.stages = args.stages or list(_STAGES)
    devices = math.prod(mesh_sizes(args.mesh).values())
    if devices > _MOST_DEVICES:
        raise ValueError(
            f"--mesh must be of at most {_MOST_DEVICES} devices, got {devices}"
        )
    prepare_jax()
    have_devices(devices)
    plan = _plan(args, _config(args.model), devices)
    print(_text(args, plan))
    return plan.to_dict()


def _over_devices(args: argparse.Namespace) -> dict[str, Any]:
    """Prints and draws the best mesh of each number of devices, and returns it all."""
    from haiku_mqa.planning import DEVICES

    prepare_jax()
    have_devices(args.most_devices)
    config = _config(args.model)
    context = args.context or _context(config)
    return _plan_devices.run(args, config, DEVICES[args.device], context)


def _config(source: str) -> DecoderConfig:
    from haiku_mqa.planning import PRESETS

    if source in PRESETS:
        return PRESETS[source]
    check_name(source)
    from haiku_mqa.cli.zoo_info import spec_of

    config = spec_of(fetched(source)).config
    if not isinstance(config, DecoderConfig):
        raise ValueError(f"model {source!r} is not made of this package's parts")
    return dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")


def _plan(args: argparse.Namespace, config: DecoderConfig, devices: int) -> Plan:
    from haiku_mqa.planning import DEVICES, make_plan

    say(f"compiling {', '.join(args.stages)} for {devices} devices")
    return make_plan(
        config,
        args.mesh,
        DEVICES[args.device],
        batch=args.batch or devices,
        context=args.context or _context(config),
        stages=tuple(args.stages),
        cache_split=args.cache_split,
    )


def _context(config: DecoderConfig) -> int:
    return min(config.max_length, 2048)


def _text(args: argparse.Namespace, plan: Plan) -> str:
    kept, device = plan.held, plan.device
    head = ("stage", "held", "fits", "sent", "compute", "memory", "network", "tokens/s")
    rows = [_row(plan, stage) for stage in plan.stages]
    lines = [
        f"{args.model} on {plan.num_devices} {device.name}, {args.mesh}: "
        f"{plan.batch:,} rows of {plan.context:,} tokens",
        "",
        f"each device, of {size(device.memory)}:",
        f"  parameters              {size(kept.params)}",
        f"  masters and optimizer   {size(kept.training)}",
        f"  cache                   {size(kept.cache)}",
        "",
        table(head, rows, numbers=head[1:]),
        "",
        f"longest context at {plan.batch:,} rows   {plan.longest_context:,} tokens",
        f"most rows at {plan.context:,} tokens     {plan.largest_batch:,}",
        "",
        "held: arguments, temporaries and results; sent: bytes a step",
        "times are bounds, and * marks the one that binds",
    ]
    return "\n".join(lines)


def _row(plan: Plan, stage: Stage) -> tuple[str, ...]:
    times = (
        f"{seconds(getattr(stage, name))}{'*' if stage.binds == name else ' '}"
        for name in ("compute", "memory", "network")
    )
    fits = "yes" if plan.fits(stage) else "no"
    speed = f"{stage.tokens_per_second:,.0f}"
    return (stage.name, size(stage.held), fits, size(stage.sent), *times, speed)
