"""``haiku-mqa zoo info``: what a model is and costs, before any of it is fetched."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli import _options
from haiku_mqa.cli._models import check_name, fetched
from haiku_mqa.cli._screen import size, table
from haiku_mqa.config import DecoderConfig
from haiku_mqa.zoo import ModelSpec, load
from haiku_mqa.zoo.discovery import is_path

_DESCRIPTION = """\
Tell what a model is and what it costs. Shapes alone are computed: no weights are
made or fetched.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``info``."""
    parser = _options.add_verb(
        verbs,
        "info",
        help="tell what a model is and costs",
        run=run,
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "name",
        metavar="NAME_OR_PATH",
        help=_options.SOURCE,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a model's card.

    Args:
      args: With ``name`` and ``json``.

    Returns:
      0.

    Raises:
      ValueError: There is no such model.
      FormatError: A file of it is damaged.
      PluginError: The model's plugin failed.
      FetchError: It is on the hub, and could not be fetched.
    """
    check_name(args.name)
    prepare_jax()
    card = _card(fetched(args.name))
    print(json.dumps(card, indent=2) if args.json else _text(card))
    return 0


def _card(name: str) -> dict[str, Any]:
    from haiku_mqa.cli import _cost

    spec = spec_of(name)
    about = spec.metadata
    parameters = _cost.parameters(spec)
    return {
        "name": spec.name,
        "version": spec.version,
        "description": about.description,
        **_stored_as(name),
        "parameters": parameters,
        "weight_bytes": _cost.weight_bytes(spec),
        "cache_bytes": _cost.cache_bytes(spec),
        "license": about.license,
        "source": about.source,
        "sha256": about.sha256,
        "citation": about.citation,
        "capabilities": list(about.capabilities),
        "config": _config(spec.config),
    }


def spec_of(name: str) -> ModelSpec:
    """Returns what is known of a model, without its weights.

    Args:
      name: Of the zoo, or a path.
    """
    if is_path(name):
        from haiku_mqa.zoo.paths import describe_path

        return describe_path(Path(name))
    return load(name)


def _stored_as(name: str) -> dict[str, str]:
    """Returns the family and the dtypes of what others wrote, as far as it says."""
    if not is_path(name):
        return {}
    from haiku_mqa.zoo.paths import stored_as

    return stored_as(Path(name))


def _config(config: Any) -> dict[str, Any]:
    if isinstance(config, DecoderConfig):
        return config.to_dict()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            field.name: _plain(getattr(config, field.name))
            for field in dataclasses.fields(config)
        }
    return {name: _plain(value) for name, value in vars(config).items()}


def _plain(value: Any) -> Any:
    """Returns what JSON can hold of a value that a plugin thought of."""
    if isinstance(value, str | int | float | None):
        return value
    return str(value)


def _text(card: dict[str, Any]) -> str:
    counts = [
        [_part(part, card), f"{count:,}"] for part, count in card["parameters"].items()
    ]
    bytes_of = {"weights": card["weight_bytes"]}
    for form, by_dtype in card["cache_bytes"].items():
        bytes_of[_CACHE_FORMS[form]] = by_dtype
    sizes = [
        [what, *(size(by_dtype[d]) if d in by_dtype else "" for d in _DTYPES)]
        for what, by_dtype in bytes_of.items()
    ]
    about = [
        [key, str(card[key])]
        for key in ("family", "dtype", "license", "source", "sha256", "citation")
        if card.get(key)
    ]
    about.append(["capabilities", ", ".join(card["capabilities"]) or "none declared"])
    fields = [[name, _shown(value)] for name, value in card["config"].items()]
    return "\n\n".join(
        [
            f"{card['name']} {card['version']}\n{card['description']}",
            table(["part", "parameters"], counts, ["parameters"]),
            table(["bytes", *_DTYPES], sizes, _DTYPES),
            table(["about", ""], about),
            table(["config", ""], fields),
        ]
    )


def _part(part: str, card: dict[str, Any]) -> str:
    tied = part == "unembed" and card["config"].get("tie_embeddings")
    return "unembed (tied)" if tied else part.replace("_", "-")


_CACHE_FORMS = {
    "per_token": "cache per token",
    "per_token_with_rings": "with rings, per token",
    "rings": "with rings, at once",
}
_DTYPES = ("float32", "bfloat16", "int8")


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
