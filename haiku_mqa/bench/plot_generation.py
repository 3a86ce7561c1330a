"""Pictures of what ``prefill``, ``context``, ``batch`` and ``startup`` found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from haiku_mqa.bench.plot_looks import COLOURS, GREY, LOOKS, style

_LONGEST_NAME = 28  # of a model, in characters


def plot_prefill(data: Mapping[str, Any], path: Path) -> None:
    """Draws how fast prompts of each length are read.

    Args:
      data: As ``run_prefill`` returns it in its findings.
      path: The file; its ending says which format.
    """
    with _figure(path, (7.5, 4.2)) as figure:
        axes = figure.subplots()
        lengths = data["lengths"]
        names = [_label(program) for program in lengths[0]["programs"]]
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            found = [length["programs"][index] for length in lengths]
            places = [
                at + (index - (len(names) - 1) / 2) * width for at in range(len(found))
            ]
            heights = [each["tokens_per_second"] for each in found]
            bars = axes.bar(
                places,
                heights,
                0.92 * width,
                yerr=_spread(found, "tokens_per_second"),
                error_kw={"ecolor": GREY, "lw": 1.2},
                color=COLOURS[index % len(COLOURS)],
                label=name,
            )
            axes.bar_label(bars, [f"{height:,.0f}" for height in heights], padding=3)
        axes.set_xticks(
            range(len(lengths)),
            [f"{length['prompt_tokens']:,} prompt tokens" for length in lengths],
        )
        axes.set_xlabel("bars are medians, lines the slowest and the fastest run")
        axes.set_ylabel("prefill, tokens per second")
        axes.set_title(f"Prefill of {_short(data['model'])}")
        axes.margins(y=0.12)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def plot_context(data: Mapping[str, Any], path: Path) -> None:
    """Draws what a token costs as the cache fills, and what the cache weighs.

    Args:
      data: As ``run_context`` returns it in its findings.
      path: The file; its ending says which format.
    """
    with _figure(path, (10, 4.2)) as figure:
        times, sizes = figure.subplots(1, 2)
        models = data["models"]
        for index, kind in enumerate(dict.fromkeys(m["attention"] for m in models)):
            own = [model for model in models if model["attention"] == kind]
            contexts = [model["context"] for model in own]
            heads = own[0]["num_kv_heads"]
            label = f"{kind}, {heads} KV head{'s' * (heads > 1)}"
            times.plot(
                contexts,
                [model["decode_us_per_token"] / 1e3 for model in own],
                **style(index),
                label=label,
            )
            times.plot(
                contexts,
                [model["limit_us_per_token"] / 1e3 for model in own],
                color=COLOURS[index % len(COLOURS)],
                ls=":",
            )
            megabytes = [model["cache_bytes"] / 1e6 for model in own]
            sizes.plot(contexts, megabytes, **style(index), label=label)
            sizes.annotate(
                f"{megabytes[-1]:,.0f} MB",
                (contexts[-1], megabytes[-1]),
                xytext=(-6, 6),
                textcoords="offset points",
                ha="right",
            )
        times.plot([], [], color=GREY, ls=":", label="the memory's limit")
        contexts = list(dict.fromkeys(model["context"] for model in models))
        for axes in (times, sizes):
            _powers(axes, contexts)
            axes.set_xlabel("tokens in the cache")
        times.set_ylim(bottom=0)
        times.set_ylabel("decode, ms per token")
        times.set_title("What a token costs")
        times.legend(loc="upper left")
        sizes.set_yscale("log")
        sizes.set_ylabel("cache, MB")
        sizes.set_title("What the cache weighs")


def plot_batch(data: Mapping[str, Any], path: Path) -> None:
    """Draws how many tokens per second all rows get together.

    Args:
      data: As ``run_batch`` returns it in its findings.
      path: The file; its ending says which format.
    """
    with _figure(path, (11.5, 4.2)) as figure:
        axes, shares = figure.subplots(1, 2)
        batches = data["batches"]
        rows = [batch["batch_size"] for batch in batches]
        for index, program in enumerate(batches[0]["programs"]):
            own = [batch["programs"][index] for batch in batches]
            axes.plot(
                rows,
                [each["decode_tokens_per_second"] for each in own],
                **style(index),
                label=_label(program),
            )
            shares.plot(
                rows,
                [100 * each["fraction_of_limit"] for each in own],
                **style(index),
                label=_label(program),
            )
        ours = [batch["programs"][0]["limit_tokens_per_second"] for batch in batches]
        axes.plot(rows, ours, color=GREY, ls=":", label="the machine's limit for ours")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_ylabel("decode, tokens per second of all rows")
        axes.set_title(f"{_short(data['model'])}, many rows at once")
        shares.set_ylim(bottom=0)
        shares.set_ylabel("decode, % of the machine's limit")
        shares.set_title("How much of the limit")
        for each in (axes, shares):
            _powers(each, rows)
            each.set_xlabel("rows B")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


def plot_memory(data: Mapping[str, Any], path: Path) -> None:
    """Draws the most memory that processes held, over what they had to hold.

    Args:
      data: As ``run_memory`` returns it in its findings.
      path: The file; its ending says which format.
    """
    forms = data["forms"]
    with _figure(path, (8, 1.6 + 0.6 * len(forms))) as figure:
        axes = figure.subplots()
        places = range(len(forms))
        peaks = [each["peak_over_jax_bytes"] / 1e6 for each in forms]
        weights = [each["weight_bytes"] / 1e6 for each in forms]
        caches = [each["cache_bytes"] / 1e6 for each in forms]
        bars = axes.barh(places, peaks, 0.7, color="0.85", label="peak")
        labels = [
            f"{peak:,.0f} MB ({each['ratio']:.2f}x)"
            for peak, each in zip(peaks, forms, strict=True)
        ]
        axes.bar_label(bars, labels, padding=3)
        axes.barh(places, weights, 0.4, color=COLOURS[0], label="weights")
        axes.barh(places, caches, 0.4, left=weights, color=COLOURS[1], label="cache")
        axes.set_yticks(places, [each["form"] for each in forms])
        axes.invert_yaxis()
        axes.set_xlabel("MB, over a process that only runs jax")
        axes.set_title("The most memory that loading and generating hold")
        axes.margins(x=0.25)
        axes.legend(loc="lower right")


def plot_startup(data: Mapping[str, Any], path: Path) -> None:
    """Draws how long programs take to their first token, and how much memory.

    Args:
      data: As ``run_startup`` returns it in its findings.
      path: The file; its ending says which format.
    """
    programs = data["programs"]
    with _figure(path, (10, 1.6 + 0.5 * len(programs))) as figure:
        times, sizes = figure.subplots(1, 2, sharey=True)
        places = range(len(programs))
        labels = [
            each["program"]
            if each["model"] == "no model"
            else f"{_short(each['model'])}\n{each['program']}"
            for each in programs
        ]
        seconds = [each["seconds_to_first_token"] for each in programs]
        colours = [_colour_of(each) for each in programs]
        bars = times.barh(places, seconds, 0.65, color=colours)
        times.bar_label(bars, [f"{each:.2f} s" for each in seconds], padding=3)
        peaks = [(each["peak_bytes"] or 0) / 1e6 for each in programs]
        held = [each["weight_and_cache_bytes"] / 1e6 for each in programs]
        bars = sizes.barh(places, peaks, 0.65, color=colours)
        ratios = [
            "not told"
            if each["peak_bytes"] is None
            else f"{each['peak_bytes'] / 1e6:,.0f} MB"
            + (f" ({each['peak_ratio']:.1f}x)" if each["peak_ratio"] else "")
            for each in programs
        ]
        sizes.bar_label(bars, ratios, padding=3)
        for place, each in zip(places, held, strict=True):
            if not each:
                continue
            sizes.plot(
                [each, each], [place - 0.36, place + 0.36], color="black", lw=1.6
            )
        sizes.plot([], [], color="black", lw=1.6, label="weights and cache")
        times.set_yticks(places, labels)
        times.invert_yaxis()
        times.set_xlabel("seconds")
        times.set_title("From start to first token")
        sizes.set_xlabel("MB")
        sizes.set_title("Peak memory; black: weights and cache")
        for axes in (times, sizes):
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.38)


@contextlib.contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    with rc_context(LOOKS):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, dpi=150)


def _label(program: Mapping[str, Any]) -> str:
    name = program["name"].replace(", ", "\n").replace(" (", "\n(")
    return f"{name}\n{program['dtype']}"


def _short(model: str) -> str:
    """Returns the last part of a path; a title has no room for the rest."""
    name = Path(model).name
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def _colour_of(program: Mapping[str, Any]) -> str:
    if program["model"] == "no model":
        return GREY
    return COLOURS[0 if program["program"].startswith("haiku_mqa") else 1]


def _spread(found: Sequence[Mapping[str, Any]], figure: str) -> list[list[float]]:
    """Returns how far the slowest and the fastest run are from the median."""
    medians = [each[figure] for each in found]
    runs = [each[f"{figure}_runs"] for each in found]
    return [
        [median - min(own) for median, own in zip(medians, runs, strict=True)],
        [max(own) - median for median, own in zip(medians, runs, strict=True)],
    ]


def _powers(axes: Axes, places: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places), [f"{place:,}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
