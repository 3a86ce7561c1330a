"""``haiku-mqa eval``: how well a model predicts a text."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli import _options
from haiku_mqa.cli._losses import measure, read_text_or_validation, tokens_of
from haiku_mqa.cli._models import check_name, load_model
from haiku_mqa.cli._screen import say, table

if TYPE_CHECKING:
    from haiku_mqa.training import Corpus, Evaluation

_DESCRIPTION = """\
Tell how well a model predicts a text. A context slides over the whole of it, and
each token but the first is predicted once, from all that is before it or from at
least context - stride tokens:

  loss           nats per token
  perplexity     among how many equally likely tokens the choice was as hard
  bits per byte  compares models whose tokens differ

Without FILE the text is the last tenth of the corpus in the package, which training
holds out unless it is told otherwise.
"""

_EPILOG = """\
examples:
  haiku-mqa eval
  haiku-mqa eval --model runs/first
  haiku-mqa eval --model smollm2-135m --context 512 --stride 512 novel.txt
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``eval``."""
    parser = _options.add_verb(
        verbs,
        "eval",
        help="tell how well a model predicts a text",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="a text, a folder of texts, or a .jsonl file of them",
    )
    _options.add_model(parser, _options.PACKED_MODEL)
    parser.add_argument(
        "--context",
        type=_options.whole(1),
        metavar="N",
        help="tokens read at a time (default: the model's own, at most 1024)",
    )
    parser.add_argument(
        "--stride",
        type=_options.whole(1),
        metavar="N",
        help="tokens by which the context slides (default: half of it)",
    )
    parser.add_argument(
        "--batch-size",
        type=_options.whole(1),
        metavar="N",
        default=8,
        help="contexts read at once (default: %(default)s)",
    )
    _options.add_dtype(parser)
    _options.add_quantize(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints how well a model predicts a text.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such text or model, the model's tokenizer cannot read
        the text, or the text is too short.
      FloatingPointError: The loss is not finite.
    """
    check_name(args.model)
    prepare_jax()
    corpus = read_text_or_validation(args.file)
    if args.file is None:
        say("no FILE is given: reading the last tenth of the corpus in the package")
    loaded = load_model(args.model, dtype=args.dtype, quantize=args.quantize)
    if loaded.tokenizer is None:
        raise ValueError(f"model {args.model!r} has no tokenizer to read text with")
    try:
        tokens = tokens_of(corpus, loaded.tokenizer)
    except ValueError as error:
        hint = "; give a FILE that it can read" if args.file is None else ""
        raise ValueError(f"{corpus.name}: {error}{hint}") from None
    result = measure(
        loaded.model,
        loaded.params,
        tokens,
        "tokens",
        context=args.context,
        stride=args.stride,
        batch_size=args.batch_size,
    )
    print(_as_json(args.model, corpus, result) if args.json else _as_text(result))
    return 0


def _as_json(model: str, corpus: Corpus, result: Evaluation) -> str:
    fields = {
        "model": model,
        "text": corpus.name,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.num_tokens,
        "bytes": result.num_bytes,
        "context": result.context,
        "stride": result.stride,
    }
    return json.dumps(fields, indent=2)


def _as_text(result: Evaluation) -> str:
    bits = result.bits_per_byte
    row = [
        f"{result.loss:.4f}",
        f"{result.perplexity:.3f}",
        "-" if bits is None else f"{bits:.4f}",
        f"{result.num_tokens:,}",
        f"{result.num_bytes:,}",
        f"{result.context:,}",
        f"{result.stride:,}",
    ]
    return table(_HEAD, [row], _HEAD)


_HEAD = ("loss", "perplexity", "bits per byte", "tokens", "bytes", "context", "stride")
