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
        figure = Figure(figsize=(9, 7.5), layout="constrained")
        figure.suptitle(
            f"{data['model']} on {data['device']}: {_STEPS[data['stage']]}, "
            f"{data['batch']:,} rows of {data['context']:,} tokens"
        )
        times, costs = figure.subplots(2, 1, sharex=True)
        times.set_xscale("log", base=2)
        _line(times, points, "seconds")
        _name_what_binds(times, points)
        _ideal(times, points)
        times.set_ylabel("time of a step, seconds, at least")
        _line(costs, points, "cost")
        _write(costs, points)
        costs.set_ylabel(
            "cost of a step, device-seconds"
            if price is None
            else f"dollars a million tokens,\nat ${price:g} a device and hour"
        )
        for axes, key in ((times, "seconds"), (costs, "cost")):
            _scale(axes, [each[key] for each in points])
        _end(times, points, " pays up to {:,}")
        _end(
            costs,
            points,
            " more than {:,} cost over a\n quarter more than the least",
        )
        _name_meshes(costs, points)
        figure.savefig(path, dpi=150)


def _line(axes: Axes, points: Sequence[Point], key: str) -> None:
    fitting = [each for each in points if each["fits"]]
    axes.plot(
        [each["devices"] for each in fitting],
        [each[key] for each in fitting],
        color="0.75",
        lw=1.5,
        zorder=1,
    )
    for each in points:
        colour = COLOURS[_BOUND_BY[each["binds"]]] if each["fits"] else GREY
        axes.plot(
            each["devices"],
            each[key],
            _MARKERS[each["binds"]],
            ms=8,
            mec=colour,
            mew=1.6,
            color=colour if each["fits"] else "white",
        )


def _name_what_binds(axes: Axes, points: Sequence[Point]) -> None:
    for own, words, colour in _labelled(points):
        middle = own[(len(own) - 1) // 2]
        place = points.index(middle)
        side = {0: "left", len(points) - 1: "right"}.get(place, "center")
        axes.annotate(
            words,
            (middle["devices"], middle["seconds"]),
            xytext=(0, 10),
            textcoords="offset points",
            ha=side,
            color=colour,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5},
        )


def _labelled(points: Sequence[Point]) -> Iterator[tuple[list[Point], str, str]]:
    """Yields neighbours that are alike, what is written above them, and its colour."""

    def kind(each: Point) -> tuple[str, str]:
        if not each["fits"]:
            return "does not fit", GREY
        return f"{each['binds']} binds", COLOURS[_BOUND_BY[each["binds"]]]

    for (words, colour), own in itertools.groupby(points, kind):
        yield list(own), words, colour


def _write(axes: Axes, points: Sequence[Point]) -> None:
    """Writes the cost of what fits beside its mark."""
    for each in points:
        if each["fits"]:
            axes.annotate(
                f"{each['cost']:,.3g}",
                (each["devices"], each["cost"]),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
            )


def _ideal(axes: Axes, points: Sequence[Point]) -> None:
    fitting = [each for each in points if each["fits"]] or points
    work = fitting[0]["devices"] * fitting[0]["seconds"]
    places = [each["devices"] for each in fitting]
    axes.plot(
        places, [work / place for place in places], color=GREY, ls=":", lw=1.2, zorder=0
    )
    axes.annotate(
        "twice the devices, half the time",
        (places[-1], work / places[-1]),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GREY,
    )


def _scale(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if max(values) > 12 * min(values):  # else the scale has hardly a power of ten
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.16)


def _name_meshes(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xticks(
        [each["devices"] for each in points],
        [f"{each['devices']:,}\n{_under(each['mesh'])}" for each in points],
        fontsize=8,
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("devices, and the best mesh of them")


def _under(mesh: str) -> str:
    return mesh.replace(",", "\n").replace(" ", "\n")


def _end(axes: Axes, points: Sequence[Point], words: str) -> None:
    """Marks where more devices stop paying, if that is before the last."""
    most = pays_up_to(points)
    if most is None or most == points[-1]["devices"]:
        return
    at = most * 2**0.5  # between this number and the next
    axes.axvline(at, color="black", lw=1, ls="--", zorder=0)
    axes.annotate(
        words.format(most),
        (at, 1),
        xycoords=("data", "axes fraction"),
        va="top",
        fontsize=8,
    )
