"""The picture of what ``ainslie`` found: three panels, as the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

from haiku_mqa.bench.plot_looks import GREY, LOOKS, style

_SHOWN_SHARE = 0.05  # at which the paper's figure 4 compares methods


def plot_ainslie(data: Mapping[str, Any], path: Path) -> None:
    """Draws what was found and writes the picture.

    Args:
      data: As ``run_ainslie`` returns it in its findings.
      path: The file; its ending says which format.
    """
    with rc_context(LOOKS):
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        by_method, by_share, by_time = figure.subplots(1, 3)
        _draw_methods(by_method, data)
        _draw_shares(by_share, data)
        _draw_times(by_time, data)
        figure.savefig(path, dpi=150)


def _draw_methods(axes: Axes, data: Mapping[str, Any]) -> None:
    place = list(data["shares"]).index(_SHOWN_SHARE)
    whole, *fewer = data["models"]
    methods = list(dict.fromkeys(model["method"] for model in fewer))
    for index, method in enumerate(methods):
        models = [model for model in fewer if model["method"] == method]
        axes.plot(
            [model["num_kv_heads"] for model in models],
            [model["validation_losses"][place] for model in models],
            **style(index),
            label=method,
        )
    axes.axhline(
        whole["validation_losses"][place], color=GREY, ls="--", label="multi-head"
    )
    _label_heads(axes, sorted({model["num_kv_heads"] for model in fewer}))
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title(f"How heads are made, at {_SHOWN_SHARE:.0%} of training")
    axes.legend()


def _draw_shares(axes: Axes, data: Mapping[str, Any]) -> None:
    percents = [100 * share for share in data["shares"]]
    whole, *fewer = data["models"]
    first = fewer[0]["method"] if fewer else None
    for index, model in enumerate(m for m in fewer if m["method"] == first):
        axes.plot(
            percents,
            model["validation_losses"],
            **style(index),
            label=f"{model['num_kv_heads']} KV, {first}",
        )
    axes.plot(
        percents, whole["validation_losses"], color=GREY, ls="--", label="multi-head"
    )
    axes.set_xticks(percents, [f"{percent:g}" for percent in percents])
    axes.set_xlabel("trained on for, % of training")
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title("How long it is trained on")
    axes.legend()


def _draw_times(axes: Axes, data: Mapping[str, Any]) -> None:
    decoding = sorted(data["decoding"], key=lambda each: each["num_kv_heads"])
    heads = [each["num_kv_heads"] for each in decoding]
    axes.plot(
        heads,
        [each["decode_us_per_token"] for each in decoding],
        **style(0),
        label="measured",
    )
    axes.plot(
        heads,
        [each["limit_us_per_token"] for each in decoding],
        color=GREY,
        ls=":",
        label="the memory's limit",
    )
    _label_heads(axes, heads)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("decode, µs per token")
    axes.set_title(
        f"Decoding {data['settings']['batch_size']} rows after "
        f"{data['settings']['context']} tokens"
    )
    axes.legend()


def _label_heads(axes: Axes, heads: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(heads))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("KV heads K")
