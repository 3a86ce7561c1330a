"""What the benchmarks that train have in common: options, and how results are told."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa._heap import keep_freed_memory
from haiku_mqa.cli import _options
from haiku_mqa.cli._files import check_writable, replacing
from haiku_mqa.cli._screen import table

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_ENDINGS = (".pdf", ".png", ".svg")


def add_numbers(
    parser: argparse.ArgumentParser, *numbers: tuple[str, int, int, str]
) -> None:
    """Adds options that are whole numbers.

    Args:
      parser: The verb's.
      *numbers: Name, the least allowed, the default, and what it is.
    """
    for option, least, default, text in numbers:
        parser.add_argument(
            option,
            type=_options.whole(least),
            metavar="N",
            default=default,
            help=f"{text} (default: %(default)s)",
        )


def add_sizes(
    parser: argparse.ArgumentParser, option: str, default: str, text: str
) -> None:
    """Adds an option that is several whole numbers.

    Args:
      parser: The verb's.
      option: Its name.
      default: As it would be typed.
      text: What it is.
    """
    parser.add_argument(
        option,
        type=_options.sizes,
        metavar="N,N",
        default=_options.sizes(default),
        help=f"{text} (default: {default})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write every figure to a file too"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json`` and ``--markdown``."""
    add_json(parser)
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the table alone, in Markdown, as the documentation has it",
    )


def add_plot(parser: argparse.ArgumentParser) -> None:
    """Adds ``--plot``."""
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw the figures: .png, .svg or .pdf"
    )


def add_peers(parser: argparse.ArgumentParser, *, has_gguf: bool = True) -> None:
    """Adds what says where peers are.

    Args:
      parser: The verb's.
      has_gguf: Whether llama.cpp is one of them.
    """
    peers = "torch, transformers or llama_cpp" if has_gguf else "torch and transformers"
    parser.add_argument(
        "--torch-python",
        metavar="PYTHON",
        help=f"a Python that has {peers}, if not this",
    )
    if has_gguf:
        parser.add_argument(
            "--gguf",
            metavar="FILE",
            type=Path,
            help="the model's file, for llama.cpp to run (default: --model, where it "
            "names one)",
        )


def gguf_of(args: argparse.Namespace) -> Path | None:
    """Returns the file that llama.cpp is to run, if there is one.

    Args:
      args: As parsed, with the options of ``add_peers``.

    Raises:
      OSError: It is not there.
    """
    if args.gguf is not None:
        args.gguf.stat()
        return args.gguf
    return Path(args.model) if args.model.endswith(".gguf") else None


def check_room(args: argparse.Namespace, context: int) -> None:
    """Raises ``ValueError`` where prompt and new tokens do not fit a model.

    Args:
      args: As parsed.
      context: Of the model, in tokens.

    Raises:
      ValueError: They do not.
    """
    if args.prompt_tokens + args.new_tokens > context:
        raise ValueError(
            f"--prompt-tokens and --new-tokens must be at most {context} together, the "
            f"context of {args.model}, got {args.prompt_tokens} + {args.new_tokens}"
        )


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures to the file that ``--json`` names.

    Args:
      path: The file; written whole or not at all.
      figures: Plain data.

    Raises:
      OSError: It cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(figures, indent=2) + "\n")


def run(
    args: argparse.Namespace,
    measure: Callable[[], Findings],
    plot: Callable[[Mapping[str, Any], Path], None] | None = None,
) -> int:
    """Measures, prints what was found, and writes it where options say.

    Args:
      args: As parsed, with the options of ``add_output``, and with that of
        ``add_plot`` where there is a picture.
      measure: What finds it; called when this process is ready to train.
      plot: Draws the figures to a file.

    Returns:
      0.

    Raises:
      ValueError: The picture's ending is unknown.
      OSError: A file cannot be written. Both are told before the work.
    """
    picture: Path | None = args.plot if plot else None
    if picture is not None and picture.suffix.lower() not in _ENDINGS:
        raise ValueError(
            f"--plot must end in {', '.join(_ENDINGS)}, got {str(picture)!r}"
        )
    for path in (args.json, picture):
        if path is not None:
            check_writable(path)
    keep_freed_memory()  # as the verb train does
    found = measure()
    if args.json is not None:
        write_json(args.json, found.to_dict())
    if plot is not None and picture is not None:
        with replacing(picture) as part:
            plot(found.data, part)
    if args.markdown:
        print(found.markdown())
        return 0
    numbers = found.columns[1:]
    print(f"{found.title}\n\n{table(found.columns, found.rows, numbers)}\n")
    print("\n".join(found.notes))
    return 0
