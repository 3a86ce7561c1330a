"""How pictures of findings look, all alike."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "0.45"
LOOKS: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "0.9",
    "legend.frameon": False,
}


def style(index: int) -> dict[str, Any]:
    """Returns how the line of a place in the legend is drawn.

    Args:
      index: The place, from zero.

    Example:
      >>> style(0)["marker"], style(6) == style(0)
      ('o', True)
    """
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "lw": 1.8,
    }
