"""``haiku-mqa convert-heads``: a trained decoder with fewer key/value heads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli import _options
from haiku_mqa.cli._losses import Tokens, measure, read_text_or_validation, tokens_of
from haiku_mqa.cli._models import check_name, load_model
from haiku_mqa.cli._screen import say, size, table
from haiku_mqa.cli.convert import check_out

if TYPE_CHECKING:
    from haiku_mqa.config import DecoderConfig
    from haiku_mqa.model import Model, Params
    from haiku_mqa.zoo.loading import LoadedModel

_METHODS = ("mean", "first", "random")
_CHARACTERS = 20_000

_DESCRIPTION = """\
Give a trained decoder another number of key/value heads, and write it as a model
folder. Fewer heads each stand for a group of the old ones: the cache gets smaller,
and the loss higher, until a little training heals it. More heads are copies, and the
model predicts what it did.

The loss is told before and after, on the beginning of a text: of the corpus in the
package's validation part, unless --text names one.
"""

_EPILOG = """\
examples:
  haiku-mqa convert-heads runs/multi-head runs/multi-query --kv-heads 1
  haiku-mqa convert-heads smollm2-135m smollm2-multi-query --kv-heads 1 --method first
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``convert-heads``."""
    parser = _options.add_verb(
        verbs,
        "convert-heads",
        help="give a trained model fewer or more key/value heads",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help=_options.SOURCE,
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new folder; an empty one will do"
    )
    parser.add_argument(
        "--kv-heads",
        type=_options.whole(1),
        metavar="N",
        required=True,
        help="how many key/value heads it shall have; 1 is multi-query",
    )
    parser.add_argument(
        "--method",
        choices=_METHODS,
        metavar="METHOD",
        default="mean",
        help="mean, first or random: what fewer heads are made of (default: "
        "%(default)s)",
    )
    parser.add_argument("--text", metavar="FILE", help="a text to measure the loss on")
    parser.add_argument(
        "--characters",
        type=_options.whole(2),
        metavar="N",
        default=_CHARACTERS,
        help="how much of the text is read (default: %(default)s)",
    )
    _options.add_seed(parser, "new heads where --method is random")
    _options.add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Writes a converted model, and prints what became of it.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model or text, OUT is not empty, the number of heads
        fits neither way, or the model's tokenizer cannot read --text.
      OSError: OUT cannot be written.
      FloatingPointError: A loss is not finite.
    """
    check_name(args.source)
    check_out(args.out)
    prepare_jax()
    import jax

    from haiku_mqa.heads import convert_heads
    from haiku_mqa.model import build

    corpus = read_text_or_validation(args.text, args.characters)
    loaded = load_model(args.source, dtype=args.dtype)
    config, params = convert_heads(
        loaded.model.config,
        loaded.params,
        args.kv_heads,
        args.method,
        rng=jax.random.key(args.seed),
    )
    tokens = _tokens(loaded, corpus, args)
    losses = []
    if tokens is not None:
        for title, model, weights in (
            ("before", loaded.model, loaded.params),
            ("after", build(config), params),
        ):
            result = measure(model, weights, tokens, title)
            losses.append(f"{result.loss:.4f}")
    _write(args.out, config, params, loaded)
    print(_table((loaded.model, build(config)), losses))
    print(f"\nwrote {args.out}, which --model takes, and train --init to heal it")
    return 0


def _tokens(
    loaded: LoadedModel, corpus: Any, args: argparse.Namespace
) -> Tokens | None:
    if loaded.tokenizer is None:
        say(f"{args.source} has no tokenizer, so no loss is measured")
        return None
    try:
        return tokens_of(corpus, loaded.tokenizer)
    except ValueError as error:
        if args.text is not None:
            raise ValueError(f"{args.text}: {error}") from None
        say(f"no loss is measured, --text can name another text: {error}")
        return None


def _write(
    out: Path, config: DecoderConfig, params: Params, loaded: LoadedModel
) -> None:
    from haiku_mqa import model_folder
    from haiku_mqa.text import Tokenizer

    out.mkdir(parents=True, exist_ok=True)
    model_folder.write_weights(out, params)
    if isinstance(loaded.tokenizer, Tokenizer):
        loaded.tokenizer.save(out / model_folder.TOKENIZER)
    elif loaded.tokenizer is not None:
        say(
            "no tokenizer was written: this model's is not one of haiku_mqa.text, so "
            "encode with the original's"
        )
    # Last: a folder with a config is a whole model.
    model_folder.write_config(out, config)


def _table(models: tuple[Model, Model], losses: list[str]) -> str:
    from haiku_mqa.cli._cost import cache_bytes, parameters

    dtype = models[0].config.dtype
    rows = [
        ["query heads", *(f"{m.config.num_heads:,}" for m in models)],
        ["key/value heads", *(f"{m.config.num_kv_heads:,}" for m in models)],
        ["parameters", *(f"{parameters(m)['total']:,}" for m in models)],
        [
            "cache per token",
            *(size(cache_bytes(m)["per_token"][dtype]) for m in models),
        ],
    ]
    if losses:
        rows.append(["loss", *losses])
    return table(["", "before", "after"], rows, ["before", "after"])
