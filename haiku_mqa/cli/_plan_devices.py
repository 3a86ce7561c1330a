"""``haiku-mqa plan --plot``: the best mesh of 1, 2, 4 ... devices, and its cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._files import check_writable, replacing
from haiku_mqa.cli._screen import seconds, size, table

if TYPE_CHECKING:
    from haiku_mqa.config import DecoderConfig
    from haiku_mqa.planning import Device, Plan

_BATCH = 64  # rows, where none are asked for
_ENDINGS = (".pdf", ".png", ".svg")
_HOUR = 3600  # seconds


def add_options(parser: argparse.ArgumentParser, most: int) -> None:
    """Adds what says how many devices there may be, and what they cost.

    Args:
      parser: The verb's.
      most: Devices that can be asked for.
    """
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw time and cost against devices: .png, .svg or .pdf",
    )
    parser.add_argument(
        "--most-devices",
        type=_options.whole(1, most),
        metavar="N",
        default=most,
        help="where --plot ends (default: %(default)s)",
    )
    parser.add_argument(
        "--price",
        type=_options.positive,
        metavar="DOLLARS",
        help="of a device for an hour: --plot tells cost in dollars a million tokens "
        "(default: in device-seconds a step)",
    )


def check(args: argparse.Namespace) -> None:
    """Raises an error where options do not go with ``--plot``.

    Args:
      args: As parsed.

    Raises:
      ValueError: They do not.
      OSError: The picture cannot be written.
    """
    if args.mesh is not None:
        raise ValueError("--plot chooses meshes itself: leave --mesh out")
    if len(args.stages or ()) > 1:
        raise ValueError(
            f"--plot takes one of --stages, got {' '.join(map(str, args.stages))}"
        )
    if args.plot.suffix.lower() not in _ENDINGS:
        raise ValueError(
            f"--plot must end in {', '.join(_ENDINGS)}, got {str(args.plot)!r}"
        )
    check_writable(args.plot)


def run(
    args: argparse.Namespace, config: DecoderConfig, device: Device, context: int
) -> dict[str, Any]:
    """Plans for each number of devices, prints the table and draws the picture.

    Args:
      args: As parsed.
      config: Of the decoder.
      device: What each device is.
      context: Tokens of each row.

    Returns:
      Every figure, as plain data that JSON can hold.

    Raises:
      ValueError: No number of devices divides the decoder and its rows.
    """
    stage = args.stages[0] if args.stages else "train"
    batch = args.batch or _BATCH
    plans = _plans(config, device, args.most_devices, batch, context, stage)
    if not plans:
        raise ValueError(f"no mesh divides the decoder and {batch} rows")
    data = {
        "model": Path(args.model).name,
        "device": device.name,
        "stage": stage,
        "batch": batch,
        "context": context,
        "price": args.price,
        "points": [_point(plan, args.price) for plan in plans],
        "plans": [plan.to_dict() for plan in plans],
    }
    from haiku_mqa.cli._devices_picture import draw

    with replacing(args.plot) as part:
        draw(data, part)
    print(_text(data))
    return data


def _plans(
    config: DecoderConfig,
    device: Device,
    most: int,
    batch: int,
    context: int,
    stage: Any,
) -> list[Plan]:
    from haiku_mqa.bench.scale import progress_bar
    from haiku_mqa.planning import best_plan

    counts = [2**power for power in range(most.bit_length())]
    plans = []
    with progress_bar(len(counts), "number", is_shown=True) as bar:
        for count in counts:
            bar.set_description(f"{count} devices")
            found = best_plan(
                config, count, device, batch=batch, context=context, stage=stage
            )
            plans += [found] if found else []
            bar.update()
    return plans


def _point(plan: Plan, price: float | None) -> dict[str, Any]:
    from haiku_mqa.sharding.mesh import written

    stage = plan.stages[0]
    cost = plan.num_devices * stage.seconds  # device-seconds a step
    if price is not None:
        cost *= price / _HOUR / stage.tokens * 1e6
    return {
        "devices": plan.num_devices,
        "mesh": written(plan.mesh) if plan.num_devices > 1 else "one device",
        "held": stage.held,
        "fits": plan.fits(stage),
        "binds": stage.binds,
        "seconds": stage.seconds,
        "tokens_per_second": stage.tokens_per_second,
        "cost": cost,
    }


def _text(data: dict[str, Any]) -> str:
    unit = "device-s/step" if data["price"] is None else "$/M tokens"
    head = ("devices", "mesh", "held", "fits", "binds", "step", "tokens/s", unit)
    rows = [
        (
            f"{each['devices']:,}",
            each["mesh"],
            size(each["held"]),
            "yes" if each["fits"] else "no",
            each["binds"],
            seconds(each["seconds"]),
            f"{each['tokens_per_second']:,.0f}",
            f"{each['cost']:,.3g}",
        )
        for each in data["points"]
    ]
    numbers = ("devices", "held", "step", "tokens/s", unit)
    return (
        f"{data['model']} on {data['device']}, {data['stage']}: {data['batch']:,} rows "
        f"of {data['context']:,} tokens on all devices together\n\n"
        f"{table(head, rows, numbers)}\n\n"
        "of each number of devices the fastest mesh that fits; times are bounds"
    )
