"""``haiku-mqa convert``: any model, as a folder that transformers loads."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._models import check_name, fetched, load_model
from haiku_mqa.cli._screen import say
from haiku_mqa.zoo.discovery import is_path

if TYPE_CHECKING:
    from haiku_mqa.config import DecoderConfig
    from haiku_mqa.text import AnyTokenizer
    from haiku_mqa.zoo.loading import LoadedModel

_FAMILY = "llama"  # which holds most of what a decoder can be

_DESCRIPTION = """\
Write a model as a folder of Hugging Face's libraries: config.json, weights in
safetensors, and its tokenizer, with the chat template if it came with one.
"""

_EPILOG = """\
examples:
  haiku-mqa convert runs/first first
  haiku-mqa convert smollm2-135m smollm2 --dtype bfloat16
  haiku-mqa convert model.gguf model --family mistral
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``convert``."""
    parser = _options.add_verb(
        verbs,
        "convert",
        help="write a model as a folder that transformers loads",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("source", metavar="IN", help=_options.SOURCE)
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the new folder; an empty one will do"
    )
    parser.add_argument(
        "--family",
        metavar="FAMILY",
        help="the model_type of OUT (default: that of IN where it has one, or "
        f"{_FAMILY})",
    )
    _options.add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Writes a model's folder.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: There is no such model or family, OUT is not empty, or the family
        has no such decoder.
      FormatError: A file of IN is damaged.
      FetchError: IN could not be fetched.
      OSError: OUT cannot be written.
    """
    check_name(args.source)
    check_out(args.out)
    from haiku_mqa.pretrained import family_named, save_pretrained

    source = fetched(args.source)
    family = args.family or _family_of(source)
    family_named(family)
    loaded = load_model(source, dtype=args.dtype)
    say(f"writing {args.out}")
    save_pretrained(
        args.out,
        _without_dropout(loaded.model.config),
        loaded.params,
        family=family,
        tokenizer=_tokenizer(loaded),
    )
    print(f"wrote {args.out}, of the family {family}")
    return 0


def check_out(out: Path) -> None:
    """Raises an error for what is no new or empty folder.

    Args:
      out: Where a model is to be written.

    Raises:
      ValueError: The folder is not empty.
      NotADirectoryError: It is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"OUT must be a new or an empty folder, and {out} is not empty"
        )


def _family_of(source: str) -> str:
    from haiku_mqa.pretrained import family_of_folder, read_gguf
    from haiku_mqa.pretrained.architectures import architecture_of

    if not is_path(source):
        return _FAMILY
    if Path(source).is_file():  # whose architectures have the names of families
        return architecture_of(read_gguf(source).metadata).name
    return family_of_folder(source) or _FAMILY


def _without_dropout(config: DecoderConfig) -> DecoderConfig:
    """Returns a config without what only training asks for, and few families say."""
    rates = {
        field.name: rate
        for field in dataclasses.fields(config)
        if field.name.endswith("_dropout") and (rate := getattr(config, field.name))
    }
    if rates:
        listed = ", ".join(f"{name} = {rate:g}" for name, rate in rates.items())
        say(f"left out, since only training asks for it: {listed}")
    return dataclasses.replace(config, **dict.fromkeys(rates, 0.0))


def _tokenizer(loaded: LoadedModel) -> AnyTokenizer | None:
    from haiku_mqa.pretrained import ChatTokenizer
    from haiku_mqa.text import Tokenizer

    tokenizer = loaded.tokenizer
    if tokenizer is None or isinstance(tokenizer, ChatTokenizer | Tokenizer):
        return tokenizer
    say(
        f"no tokenizer was written: a {type(tokenizer).__name__} has no form that "
        "others read, so encode with the original's"
    )
    return None
