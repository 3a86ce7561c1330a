"""The picture of what ``engine`` found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from haiku_mqa.bench.plot_looks import COLOURS, GREY, LOOKS


def plot_engine(data: Mapping[str, Any], path: Path) -> None:
    """Draws how many requests have begun and ended by when, and how fast all is.

    Args:
      data: As ``run_engine`` returns it in its findings.
      path: The file; its ending says which format.
    """
    programs = data["programs"]
    with rc_context(LOOKS):
        figure = Figure(figsize=(11.5, 4.2), layout="constrained")
        speeds, times = figure.subplots(1, 2, width_ratios=(2, 3))
        heights = [each["new_tokens_per_second"] for each in programs]
        colours = [COLOURS[index % len(COLOURS)] for index in range(len(programs))]
        bars = speeds.bar([each["name"] for each in programs], heights, 0.6)
        for bar, colour in zip(bars, colours, strict=True):
            bar.set_color(colour)
        labels = [
            f"{each['new_tokens_per_second']:,.0f}\n{each['ratio']:.1f}x"
            for each in programs
        ]
        speeds.bar_label(bars, labels, padding=3)
        speeds.margins(y=0.2)
        speeds.set_ylabel("new tokens per second, all requests")
        speeds.set_title(Path(data["model"]).name)
        for each, colour in zip(programs, colours, strict=True):
            for name, dashes in (("first", ":"), ("last", "-")):
                ended = [0.0, *each[f"{name}_token_seconds_of_each"]]
                counts = range(len(ended))
                times.step(ended, counts, where="post", color=colour, ls=dashes)
            times.plot([], [], color=colour, label=each["name"])
        times.plot([], [], color=GREY, ls=":", label="have their first token")
        times.plot([], [], color=GREY, label="have their last token")
        times.set_xlabel("seconds since all requests came")
        times.set_ylabel("requests")
        times.set_title("A run of median length")
        times.legend(loc="lower right")
        figure.savefig(path, dpi=150)
