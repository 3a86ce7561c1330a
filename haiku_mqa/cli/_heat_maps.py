"""A grid of heat maps under one colour scale."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

_POINTS = 72.0  # in an inch
_SMALLEST_FONT = 5.0  # in points; smaller cannot be read in print
_LARGEST_FONT = 10.0
_TITLE_FONT = 12.0
_TITLE_LETTERS = 10  # to an inch, wide ones
_MOST_COLUMNS = 8
# Begins at a tint, so that no attention at all is not the blank of what is to come.
_COLOURS = ListedColormap(colormaps["YlGnBu"](np.linspace(0.1, 1.0, 256)))
_LOOKS: Any = {
    "font.family": "sans-serif",
    "axes.edgecolor": "0.4",
    "axes.linewidth": 0.5,
    "svg.fonttype": "none",
}


def draw(
    maps: np.ndarray,
    labels: Sequence[str],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draws attention weights and writes the picture.

    Args:
      maps: float32 ``[R, C, T, T]`` in [0, 1]; what lies above a diagonal is left
        blank.
      labels: One for each of the T tokens.
      rows: Titles of the R rows.
      columns: Titles of the C columns.
      title: Of the whole.
      path: The file; its ending says which format.
    """
    names = [f"{row}, {column}" for row in rows for column in columns]
    flat = maps.reshape(len(names), *maps.shape[2:])
    width = len(columns) if len(rows) > 1 else min(len(columns), _MOST_COLUMNS)
    height = -(-len(names) // width)
    side = _side(len(labels), width)

    with rc_context(_LOOKS), warnings.catch_warnings():
        # A token can be of any script, and a font has some of them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(layout="constrained")
        grid = figure.subplots(height, width, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(names):
                axes.set_axis_off()
                continue
            _draw_map(axes, flat[place], names[place])
            below = place + width
            _label(
                axes,
                labels,
                side,
                at_left=place % width == 0,
                at_bottom=below >= len(names),
            )
        image = grid.flat[0].images[0]
        bar = figure.colorbar(
            image,
            ax=grid.ravel().tolist(),
            aspect=30,
            fraction=0.05 if width < 3 else 0.02,
            shrink=min(1.0, 6 / (height * side)),
        )
        bar.set_label("share of attention")
        bar.outline.set_visible(False)  # type: ignore[operator]
        figure.supxlabel("token looked at", fontsize=_LARGEST_FONT)
        figure.supylabel("token that looks", fontsize=_LARGEST_FONT)
        inches = width * side + 2.2
        wrapped = textwrap.fill(title, int(inches * _TITLE_LETTERS))
        figure.suptitle(wrapped, fontsize=_TITLE_FONT, parse_math=False)
        lines = 1 + wrapped.count("\n")
        figure.set_size_inches(inches, height * (side + 0.3) + 1.0 + 0.2 * lines)
        figure.savefig(path, dpi=_dpi(width * side, height * side))


def _draw_map(axes: Axes, weights: np.ndarray, name: str) -> None:
    later = np.triu(np.ones(weights.shape, bool), k=1)
    axes.imshow(
        np.ma.masked_array(weights, later),
        cmap=_COLOURS,
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
    )
    axes.set_title(name, fontsize=_LARGEST_FONT, pad=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2, width=0.5, pad=2)


def _label(
    axes: Axes, labels: Sequence[str], side: float, *, at_left: bool, at_bottom: bool
) -> None:
    cell = side * _POINTS / len(labels)
    # Every second, third ... label where they would not be legible side by side.
    step = max(1, int(np.ceil(_SMALLEST_FONT * 1.15 / cell)))
    font = float(np.clip(cell * step / 1.15, _SMALLEST_FONT, _LARGEST_FONT))
    ticks = range(0, len(labels), step)
    shown = [labels[tick] for tick in ticks]
    axes.set_xticks(ticks, shown if at_bottom else [], rotation=90, fontsize=font)
    axes.set_yticks(ticks, shown if at_left else [], fontsize=font)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a dollar sign is a token like any other


def _side(tokens: int, columns: int) -> float:
    """Returns the size of one map, in inches."""
    cell = {1: 0.26, 2: 0.2}.get(columns, 0.15)
    return float(np.clip(tokens * cell, 2.0, {1: 10.0, 2: 6.0}.get(columns, 4.0)))


def _dpi(width: float, height: float) -> float:
    """Returns dots per inch: fine, but no picture of hundreds of megabytes."""
    return float(min(200.0, 10_000 / max(width, height)))
