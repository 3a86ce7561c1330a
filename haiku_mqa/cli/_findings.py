"""What benchmarks have in common: their options, and how results are told."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from haiku_mqa._heap import keep_freed_memory
from haiku_mqa.cli import _options
from haiku_mqa.cli._files import check_writable, replacing
from haiku_mqa.cli._screen import table

if TYPE_CHECKING:
    from haiku_mqa.bench.findings import Findings

_ENDINGS = (".pdf", ".png", ".svg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """One of ``bench``'s verbs: what it measures, and the options it takes.

    Options come in the same order and the same words for every verb.

    Attributes:
      name: The verb.
      help: One line.
      description: What ``--help`` says first.
      epilog: What it says last: examples.
      measure: Finds it, given the parsed arguments.
      plot: Module and function that draws the figures, as ``"module:function"``;
        imported when a picture is asked for. ``None`` where there is none.
      has_model: Whether it takes ``--model`` and ``--dtype``.
      sizes: Options that are several whole numbers: name, default, and what it is.
      numbers: Options that are one: name, the least, the default, and what it is.
      seed: What ``--seed`` is the seed of; ``None`` where there is none.
      peers: Whether ``--torch-python`` is taken, and with ``"gguf"`` ``--gguf`` too.
      add_own: Adds the options that no other verb has.
    """

    name: str
    help: str
    description: str
    epilog: str
    measure: Callable[[argparse.Namespace], Findings]
    plot: str | None = None
    has_model: bool = False
    sizes: tuple[tuple[str, str, str], ...] = ()
    numbers: tuple[tuple[str, int, int, str], ...] = ()
    seed: str | None = None
    peers: Literal["torch", "gguf"] | None = None
    add_own: Callable[[argparse.ArgumentParser], None] = lambda parser: None

    def add_parser(self, verbs: Any) -> None:
        """Adds the verb.

        Args:
          verbs: What ``add_subparsers`` returned.
        """
        parser = _options.add_verb(
            verbs,
            self.name,
            help=self.help,
            run=self._run,
            description=self.description,
            epilog=self.epilog,
        )
        if self.has_model:
            _options.add_model(parser)
        self.add_own(parser)
        for option, default, text in self.sizes:
            add_sizes(parser, option, default, text)
        add_numbers(parser, *self.numbers)
        if self.has_model:
            _options.add_dtype(parser)
        if self.seed is not None:
            _options.add_seed(parser, self.seed)
        if self.peers is not None:
            add_peers(parser, has_gguf=self.peers == "gguf")
        if self.plot is not None:
            add_plot(parser)
        add_output(parser)

    def _run(self, args: argparse.Namespace) -> int:
        def draw(data: Mapping[str, Any], path: Path) -> None:
            module, _, function = str(self.plot).partition(":")
            getattr(importlib.import_module(module), function)(data, path)

        return run(args, lambda: self.measure(args), draw if self.plot else None)


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


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json`` and ``--markdown``."""
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write every figure to a file too"
    )
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


def run(
    args: argparse.Namespace,
    measure: Callable[[], Findings],
    plot: Callable[[Mapping[str, Any], Path], None] | None = None,
) -> int:
    """Measures, prints what was found, and writes it where options say.

    Args:
      args: As parsed, with the options of ``add_output``, and with that of
        ``add_plot`` where there is a picture.
      measure: What finds it; called when this process is ready.
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
        with replacing(args.json) as part:
            part.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
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
