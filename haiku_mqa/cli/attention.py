"""``haiku-mqa attention``: where each head looks, as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._files import check_argument, check_writable, replacing
from haiku_mqa.cli._models import load_or_draw
from haiku_mqa.cli._screen import counted, quoted
from haiku_mqa.errors import unknown_name

if TYPE_CHECKING:
    import numpy as np

    from haiku_mqa.zoo.loading import LoadedModel

_ENDINGS = (".pdf", ".png", ".svg")
_MOST_MAPS = 64
_MOST_TOKENS = 512
_DEFAULT_HEADS = 4

_DESCRIPTION = """\
Draw attention weights as heat maps, one for each chosen head: a row is a token that
looks, a column a token that is looked at, and a colour the share of attention it
gets. What comes later cannot be seen, so the upper triangle is blank.

Models without trained weights are drawn with random ones; those that have no
tokenizer read bytes.
"""

_EPILOG = """\
examples:
  haiku-mqa attention "The cat sat on the mat because it was tired"
  haiku-mqa attention --layers 0,5 --heads 0-2,7 "To be, or not to be" --output a.pdf
  haiku-mqa attention --model mqa-decoder --layers 0 --heads 0 "multi-query"
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``attention``."""
    parser = _options.add_verb(
        verbs,
        "attention",
        help="draw where each head looks, as heat maps",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("text", metavar="TEXT", help="what the model reads")
    _options.add_model(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("attention.png"),
        help="the picture, .png, .pdf or .svg (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        type=_options.places,
        metavar="RANGES",
        help="such as 0,5 or 0-3 (default: the first, the middle and the last)",
    )
    parser.add_argument(
        "--heads",
        type=_options.places,
        metavar="RANGES",
        help="such as 0-2,7 (default: the first four)",
    )
    _options.add_seed(parser, "weights for a model that has none")


def run(args: argparse.Namespace) -> int:
    """Writes a picture of attention weights.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: The text is empty or too long, or a layer, a head or the picture's
        ending is unknown.
      OSError: The picture cannot be written.
    """
    text = check_argument("TEXT", args.text)
    if not text:
        raise ValueError("TEXT must hold some text, and is empty")
    output: Path = args.output
    if output.suffix.lower() not in _ENDINGS:
        raise unknown_name("ending of --output", output.suffix, _ENDINGS)
    check_writable(output)
    loaded = load_or_draw(args.model, dtype="float32", seed=args.seed)
    layers, heads = _chosen(loaded, args)
    ids, labels = _tokens(loaded, text, args.model)
    maps = _weights(loaded, ids, layers, heads)

    from haiku_mqa.cli._heat_maps import draw

    with replacing(output) as part:
        draw(
            maps,
            labels,
            rows=[f"layer {layer}" for layer in layers],
            columns=[f"head {head}" for head in heads],
            title=f"{args.model} reads {quoted(text, 60)}",
            path=part,
        )
    pictured = counted(len(layers) * len(heads), "heat map")
    print(
        f"{output}: {pictured} of {counted(len(ids), 'token')} "
        f"(layers {_listed(layers)}; heads {_listed(heads)})"
    )
    return 0


def _chosen(
    loaded: LoadedModel, args: argparse.Namespace
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    config = loaded.model.config
    count = config.num_layers
    layers = args.layers or tuple(dict.fromkeys((0, count // 2, count - 1)))
    heads = args.heads or tuple(range(min(_DEFAULT_HEADS, config.num_heads)))
    for name, numbers, size in (
        ("layer", layers, count),
        ("head", heads, config.num_heads),
    ):
        if max(numbers) >= size:
            raise ValueError(
                f"unknown {name} {next(n for n in numbers if n >= size)}: "
                f"{args.model} has {name}s 0 to {size - 1}"
            )
    if len(layers) * len(heads) > _MOST_MAPS:
        raise ValueError(
            f"a picture holds at most {_MOST_MAPS} heat maps, got {len(layers)} layers "
            f"x {len(heads)} heads = {len(layers) * len(heads)}"
        )
    return layers, heads


def _tokens(loaded: LoadedModel, text: str, model: str) -> tuple[list[int], list[str]]:
    tokenizer: Any = loaded.tokenizer
    config = loaded.model.config
    if tokenizer is not None:
        ids = list(tokenizer.encode(text))
        labels = [_visible(tokenizer.decode([token])) for token in ids]
    elif config.vocab_size >= 256:
        ids = list(text.encode())
        labels = [
            _visible(chr(byte)) if byte < 0x80 else f"x{byte:02X}" for byte in ids
        ]
    else:
        raise ValueError(
            f"model {model!r} has no tokenizer, and its vocabulary of "
            f"{config.vocab_size} is too small for bytes"
        )
    most = min(_MOST_TOKENS, config.max_length)
    if len(ids) > most:
        raise ValueError(f"TEXT must be at most {most} tokens long, got {len(ids)}")
    return ids, labels


def _visible(token: str) -> str:
    """Returns a token with its blanks made visible, and short enough for a label."""
    shown = token.translate(_VISIBLE)
    return shown if len(shown) <= 14 else f"{shown[:13]}…"


_VISIBLE: dict[int, str] = {
    **{code: f"x{code:02X}" for code in (*range(0x20), 0x7F)},
    ord(" "): "·",
    ord("\n"): "⏎",
    ord("\t"): "⇥",
}


def _weights(
    loaded: LoadedModel,
    ids: Sequence[int],
    layers: Sequence[int],
    heads: Sequence[int],
) -> np.ndarray:
    """Returns the chosen weights, float32 ``[layers, heads, T, T]``."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    model = loaded.model

    # What is not chosen is not computed, once it is compiled.
    @jax.jit
    def chosen(params: Any, tokens: jax.Array) -> jax.Array:
        out = model.apply(params, None, tokens, return_attention=True)
        attention = out.attention or ()
        return jnp.stack([attention[layer][0, jnp.array(heads)] for layer in layers])

    weights = np.asarray(chosen(loaded.params, jnp.asarray([ids], jnp.int32)))
    if not np.isfinite(weights).all():
        raise FloatingPointError("the attention weights are NaN")
    return weights


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
