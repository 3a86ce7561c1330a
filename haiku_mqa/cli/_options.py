"""How options are parsed, checked and described, the same way for every verb."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

from haiku_mqa.cli._failures import UsageError
from haiku_mqa.errors import unknown_name

PACKED_MODEL = "shakespeare-mqa"  # comes with the package
LANGUAGE_MODEL = "smollm2-135m"  # is fetched, and answers in a chat
DTYPES = ("float32", "bfloat16")
SOURCE = (
    "a name that 'zoo list' shows, the folder of a training run or of Hugging Face's "
    "libraries, a .gguf file, or hf:ORG/NAME[@REVISION]"
)

Options = argparse._ActionsContainer  # a parser, or a group of its options


class Parser(argparse.ArgumentParser):
    """An argument parser that raises mistakes, and takes no option half spelled."""

    def __init__(self, **arguments: Any):
        """As ``argparse.ArgumentParser``, with the defaults of this package."""
        width = min(shutil.get_terminal_size().columns, 88)
        arguments.setdefault(
            "formatter_class",
            functools.partial(
                argparse.RawDescriptionHelpFormatter,
                max_help_position=30,
                width=width,
            ),
        )
        arguments.setdefault("allow_abbrev", False)
        super().__init__(**arguments)

    def error(self, message: str) -> NoReturn:
        """Raises ``UsageError`` where argparse would print usage and exit."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def check_options(self, words: Sequence[str]) -> None:
        """Raises ``UsageError`` for the first option that is unknown.

        Told before all else: what else seems to be wrong or missing may be just what
        that option was meant to say.

        Args:
          words: All that follow this parser's name.
        """
        verbs: Mapping[str, Parser] = {}
        for action in self._actions:
            if action.nargs == argparse.PARSER:
                verbs = cast("Mapping[str, Parser]", action.choices)
        for index, word in enumerate(words):
            if word in ("--", "-h", "--help"):
                return  # what follows is no option, or is not read
            is_option = word.startswith("-") and word != "-"
            if is_option and not self._may_mean(word):
                self.refuse(word)
            if word in verbs:
                verbs[word].check_options(words[index + 1 :])
            if verbs and not is_option:
                return  # a verb's words are its own parser's

    def refuse(self, word: str) -> NoReturn:
        """Raises ``UsageError`` for a word that is no option or one too many.

        Args:
          word: As it was typed.
        """
        if word.startswith("-") and len(word) > 1:
            name = word.partition("=")[0]
            allowed = [
                option
                for action in self._actions
                for option in action.option_strings
                if option.startswith("--")
            ]
            self.error(str(unknown_name("option", name, allowed)))
        self.error(f"one word too many: {word!r}; put a text with spaces in quotes")

    def _may_mean(self, word: str) -> bool:
        """Whether a word that begins as an option does may be one, or a value."""
        with contextlib.suppress(ValueError):
            float(word)
            return True  # a negative number
        known = self._option_string_actions
        is_short_and_more = word[1] != "-" and word[:2] in known
        return " " in word or word.partition("=")[0] in known or is_short_and_more

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "value" if action.option_strings else "verb"
            error = unknown_name(what, str(value), map(str, action.choices))
            raise argparse.ArgumentError(
                action if action.option_strings else None, str(error)
            )


def add_verb(
    verbs: Any,
    name: str,
    *,
    help: str,
    run: Callable[[argparse.Namespace], int] | None,
    description: str = "",
    epilog: str = "",
) -> argparse.ArgumentParser:
    """Adds a verb.

    Args:
      verbs: What ``add_subparsers`` returned.
      name: The verb.
      help: One line.
      run: Called with the parsed arguments; ``None`` where a verb must follow.
      description: What ``--help`` says first; ``help`` as a sentence if left out.
      epilog: What it says last: examples.

    Returns:
      The verb's parser.
    """
    sentence = f"{help[0].upper()}{help[1:]}."
    parser = verbs.add_parser(
        name, help=help, description=description or sentence, epilog=epilog
    )
    add_debug(parser)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds ``--debug``, which ``main`` looks for among the words themselves."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )


def add_model(
    parser: Options,
    default: str | None = LANGUAGE_MODEL,
    shown: str | None = None,
) -> None:
    """Adds ``--model``.

    Args:
      parser: Of a verb, or a group of its options.
      default: The model where none is named; ``None`` where the verb chooses.
      shown: What help says of it; the default itself if ``None``.
    """
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        default=default,
        help=f"{SOURCE} (default: {shown or default})",
    )


def add_dtype(parser: Options) -> None:
    """Adds ``--dtype``."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="DTYPE",
        default="float32",
        help="float32 or bfloat16: what weights are held in and computed with "
        "(default: %(default)s)",
    )


def add_quantize(parser: Options) -> None:
    """Adds ``--quantize``."""
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        metavar="int8",
        help="hold matrices in a byte a number: less memory, faster decoding",
    )


def add_mesh(parser: Options) -> None:
    """Adds ``--mesh``."""
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="the devices to go over, such as data=2,tensor=4: data splits rows, fsdp "
        "rows and weights, tensor heads and d_ff (default: one device)",
    )


def add_seed(parser: Options, purpose: str) -> None:
    """Adds ``--seed``."""
    parser.add_argument(
        "--seed",
        type=whole(0, 2**32 - 1),
        metavar="N",
        default=0,
        help=f"seed of {purpose} (default: %(default)s)",
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Returns a parser of whole numbers from ``least`` to ``most``.

    Args:
      least: The smallest allowed.
      most: The largest allowed; ``None`` is no limit.

    Example:
      >>> whole(1)("12")
      12
      >>> whole(1)("0")
      Traceback (most recent call last):
      argparse.ArgumentTypeError: must be a whole number >= 1, got '0'
    """
    allowed = f">= {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"must be a whole number {allowed}, got {text!r}"
            )
        return value

    return parse


def temperature(text: str) -> float:
    """Parses a finite number of zero or more.

    Args:
      text: The number.

    Example:
      >>> temperature("0.7")
      0.7
      >>> temperature("nan")
      Traceback (most recent call last):
      argparse.ArgumentTypeError: must be a number >= 0, got 'nan'
    """
    return _number(text, lambda value: 0 <= value < math.inf, ">= 0")


def number(text: str) -> float:
    """Parses a finite number.

    Args:
      text: The number.

    Example:
      >>> number("-0.5")
      -0.5
    """
    return _number(text, math.isfinite, "and finite")


def positive(text: str) -> float:
    """Parses a finite number above 0.

    Args:
      text: The number.

    Example:
      >>> positive("1.1")
      1.1
    """
    return _number(text, lambda value: 0 < value < math.inf, "above 0")


def share(text: str) -> float:
    """Parses a number above 0 and at most 1.

    Args:
      text: The number.

    Example:
      >>> share("0.9")
      0.9
    """
    return _number(text, lambda value: 0 < value <= 1, "above 0 and at most 1")


def places(text: str) -> tuple[int, ...]:
    """Parses numbers and ranges of them, in order and each once.

    Args:
      text: Such as ``"0-2,7"``.

    Returns:
      The numbers.

    Example:
      >>> places("0-2,7")
      (0, 1, 2, 7)
      >>> places("3-1")
      Traceback (most recent call last):
      argparse.ArgumentTypeError: must be numbers and ranges such as 0-2,7, got '3-1'
    """
    numbers: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        last = last if dash else first
        # isdecimal alone takes digits of other scripts, which would surprise.
        plain = first.isascii() and last.isascii() and len(first + last) < 12
        if not (plain and first.isdecimal() and last.isdecimal()) or (
            int(first) > int(last)
        ):
            raise argparse.ArgumentTypeError(
                f"must be numbers and ranges such as 0-2,7, got {text!r}"
            )
        # A huge range ends where no model has so many layers or heads.
        span = range(int(first), min(int(last), int(first) + 10_000) + 1)
        numbers.update(dict.fromkeys(span))
    return tuple(numbers)


def sizes(text: str) -> tuple[int, ...]:
    """Parses whole numbers of one or more, in order and each once.

    Args:
      text: Such as ``"128,1024"``.

    Returns:
      The numbers, the least first.

    Example:
      >>> sizes("128,1024")
      (128, 1024)
      >>> sizes("128,,0")
      Traceback (most recent call last):
      argparse.ArgumentTypeError: must be whole numbers >= 1 such as 128,1024, got \
'128,,0'
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(p.isascii() and p.isdecimal() and 0 < int(p) < 10**9 for p in parts):
        raise argparse.ArgumentTypeError(
            f"must be whole numbers >= 1 such as 128,1024, got {text!r}"
        )
    return tuple(sorted({int(part) for part in parts}))


def _number(text: str, is_allowed: Callable[[float], bool], allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_allowed(value):
        raise argparse.ArgumentTypeError(f"must be a number {allowed}, got {text!r}")
    return value
