"""The picture of a run's losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from haiku_mqa._files import whole_file

# Okabe and Ito's colours, which colour-blind readers tell apart.
_TRAIN, _VALIDATION = "#0072B2", "#D55E00"
_GREY = "0.45"
_LOOKS: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.6",
    "axes.labelcolor": "0.25",
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "legend.frameon": False,
}
_CROWDED = 40  # points of validation, above which they are only a line
_FIRST_SHOWN = 0.04  # of the run; what is above the loss there runs off the picture
_HIGHEST_TOLD = 20.0  # nats; the perplexity of a run that went astray is no number

Points = Sequence[tuple[int, float]]


def plot_loss(path: Path, title: str, train: Points, validation: Points) -> None:
    """Draws the losses of a run so far; the file is never half written.

    Args:
      path: The picture, a PNG.
      title: What is said above it.
      train: Steps and their losses, in nats per token, in order.
      validation: The same of the validation split; the best is marked.

    Raises:
      OSError: The file could not be written.
    """
    with rc_context(_LOOKS):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        if train:
            _draw_train(axes, train)
        if validation:
            _draw_validation(axes, validation)
        _limit(axes, train, validation)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.set_ylabel("loss (nats per token)")
        axes.set_title(title, loc="left", fontsize=11, color="0.15", parse_math=False)
        if train or validation:
            axes.legend(loc="upper right")
            _add_perplexity(axes)
        with whole_file(path) as file:
            figure.savefig(file, dpi=150, format="png")


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Returns losses without their noise.

    The window is narrow at the beginning, where losses fall fast, and wider later,
    where there is little but noise.

    Args:
      losses: float ``[num_points]``.

    Returns:
      float ``[num_points]``.

    Example:
      >>> smoothed(np.array([4.0, 3.0, 3.0, 3.0])).tolist()
      [4.0, 3.0, 3.0, 3.0]
    """
    count = len(losses)
    place = np.arange(count)
    reach = np.minimum(place // 4, max(1, count // 30))
    first, last = place - reach, np.minimum(place + reach, count - 1)
    # Twice, so that a point does not count in full at one place and not at the next.
    for _ in range(2):
        sums = np.concatenate([[0.0], np.cumsum(losses)])
        losses = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return losses


def _draw_train(axes: Axes, train: Points) -> None:
    steps, losses = np.array(train, float).T
    axes.plot(steps, losses, color=_TRAIN, lw=0.8, alpha=0.25)
    axes.plot(steps, smoothed(losses), color=_TRAIN, lw=1.8, label="train, smoothed")


def _draw_validation(axes: Axes, validation: Points) -> None:
    steps, losses = np.array(validation, float).T
    marker = "o" if len(steps) <= _CROWDED else None
    axes.plot(
        steps,
        losses,
        color=_VALIDATION,
        lw=1.4,
        marker=marker,
        markersize=4,
        label="validation",
    )
    best = int(np.argmin(losses))
    axes.plot(
        steps[best],
        losses[best],
        color=_VALIDATION,
        ls="",
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgewidth=1.5,
        label=f"best: {losses[best]:.3f} at step {steps[best]:,.0f}",
    )


def _limit(axes: Axes, train: Points, validation: Points) -> None:
    """Gives the room to the losses that matter, not to the first few."""
    losses = [loss for _, loss in (*train, *validation)]
    if not losses:
        return
    last = max(step for step, _ in (*train, *validation))
    shown = [loss for step, loss in train if step >= _FIRST_SHOWN * last]
    shown += [loss for _, loss in validation]
    low, high = min(losses), max(shown)
    room = max(0.05 * (high - low), 0.02)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0, max(last, 1) * 1.02)


def _add_perplexity(axes: Axes) -> None:
    """Adds the same losses as perplexities, on the right."""
    low, high = axes.get_ylim()
    if high > _HIGHEST_TOLD:
        return
    right = axes.twinx()
    right.set_ylim(low, high)
    right.grid(False)
    right.spines["right"].set_visible(False)
    ticks = _round_perplexities(low, high)
    right.yaxis.set_major_locator(FixedLocator([math.log(tick) for tick in ticks]))
    right.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: _told(nats)))
    right.yaxis.set_minor_locator(NullLocator())
    right.tick_params(length=0)
    right.set_ylabel("perplexity", color=_GREY)


def _round_perplexities(low: float, high: float) -> list[float]:
    """Returns perplexities between two losses that are easy to read, some apart."""
    ticks: list[float] = []
    apart = (high - low) / 12
    lowest, highest = (math.floor(nats / math.log(10)) for nats in (low, high))
    for power in range(lowest, highest + 1):
        for digits in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8):
            tick = digits * 10.0**power
            if not low <= math.log(tick) <= high:
                continue
            if not ticks or math.log(tick / ticks[-1]) >= apart:
                ticks.append(tick)
    return ticks


def _told(nats: float) -> str:
    return f"{math.exp(nats):,.4g}" if nats < 9 else f"{math.exp(nats):.2g}"
