"""Step time and cost against the number of devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from haiku_mqa.bench.plot_looks import COLOURS, GREY, LOOKS

_BOUND_BY = {"compute": 0, "memory": 2, "network": 1}  # places among the colours
_MARKERS = {"compute": "o", "memory": "^", "network": "s"}
_WORTH = 1.25  # times the least cost, up to which more devices pay
_STEPS = {
    "train": "a step of training",
    "prefill": "reading the prompts",
    "decode": "a token for each row",
}

Point = Mapping[str, Any]


def pays_up_to(points: Sequence[Point]) -> int | None:
    """Returns how many devices pay: at most a quarter more than the least cost.

    Args:
      points: Of one stage, by number of devices.

    Returns:
      The most of those that fit; ``None`` where none does.

    Example:
      >>> costs = ((1, 1.0), (2, 1.2), (4, 2.0))
      >>> pays_up_to([{"devices": n, "cost": cost, "fits": True} for n, cost in costs])
      2
    """
    fitting = [each for each in points if each["fits"]]
    least = min((each["cost"] for each in fitting), default=0.0)
    paying = [each["devices"] for each in fitting if each["cost"] <= _WORTH * least]
    return max(paying, default=None)


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Draws both, and writes the picture.

    Args:
      data: Of a model on some devices: ``points``, and what they are of.
      path: The file; its ending says which format.
    """
    points, price = data["points"], data["price"]
    with rc_context({**LOOKS, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        figure.suptitle(
            f"{data['model']} on {data['device']}: {_STEPS[data['stage']]}, "
            f"{data['batch']:,} rows of {data['context']:,} tokens"
        )
        times, costs = figure.subplots(1, 2)
        _line(times, points, "seconds")
        _ideal(times, points)
        times.set_ylabel("time of a step, seconds")
        times.set_title("How long a step takes, at the least", fontsize=10)
        _line(costs, points, "cost")
        costs.set_title("What it costs", fontsize=10)
        costs.set_ylabel(
            "cost of a step, device-seconds"
            if price is None
            else f"dollars a million tokens, at ${price:g} a device and hour"
        )
        for axes, key in ((times, "seconds"), (costs, "cost")):
            _numbers(axes, points, key)
            _end(axes, points)
        figure.savefig(path, dpi=150)


def _line(axes: Axes, points: Sequence[Point], key: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    places = [each["devices"] for each in points]
    axes.plot(places, [each[key] for each in points], color="0.75", lw=1.5, zorder=1)
    for each in points:
        colour = COLOURS[_BOUND_BY[each["binds"]]]
        axes.plot(
            each["devices"],
            each[key],
            _MARKERS[each["binds"]],
            ms=8,
            mec=colour,
            mew=1.8,
            color=colour if each["fits"] else "white",
        )
    for own, words, colour in _labelled(points):
        middle = own[len(own) // 2]
        axes.annotate(
            words,
            (middle["devices"], middle[key]),
            xytext=(0, 14),
            textcoords="offset points",
            ha="center",
            color=colour,
        )


def _labelled(points: Sequence[Point]) -> Iterator[tuple[list[Point], str, str]]:
    """Yields neighbours that are alike, what is written above them, and its colour."""

    def kind(each: Point) -> tuple[str, bool]:
        return each["binds"], each["fits"]

    for (binds, fits), own in itertools.groupby(points, kind):
        words = f"{binds} binds" if fits else f"{binds} binds,\ndoes not fit"
        yield list(own), words, COLOURS[_BOUND_BY[binds]]


def _ideal(axes: Axes, points: Sequence[Point]) -> None:
    first = next((each for each in points if each["fits"]), points[0])
    places = [each["devices"] for each in points]
    work = first["devices"] * first["seconds"]
    axes.plot(
        places, [work / place for place in places], color=GREY, ls=":", lw=1.2, zorder=0
    )
    axes.annotate(
        "twice the devices, half the time ",
        (places[-1], work / places[-1]),
        ha="right",
        va="top",
        color=GREY,
    )


def _numbers(axes: Axes, points: Sequence[Point], key: str) -> None:
    """Names the devices and their mesh below, and writes numbers as people do."""
    axes.set_xticks(
        [each["devices"] for each in points],
        [f"{each['devices']:,}\n" + _under(each["mesh"]) for each in points],
    )
    for label in axes.get_xticklabels():
        label.set_fontsize(7.5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    values = [each[key] for each in points]
    if max(values) > 12 * min(values):
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.18)
    axes.set_xlabel("devices, and the best mesh of them")


def _under(mesh: str) -> str:
    return "\n".join(mesh.replace("one device", "").split(","))


def _end(axes: Axes, points: Sequence[Point]) -> None:
    """Marks where more devices stop paying, if that is before the last."""
    most = pays_up_to(points)
    if most is None or most == points[-1]["devices"]:
        return
    at = most * 2**0.5  # between this number and the next
    axes.axvline(at, color="black", lw=1, ls="--", zorder=0)
    axes.annotate(
        f" pays up to {most:,}",
        (at, 1),
        xycoords=("data", "axes fraction"),
        va="top",
    )
