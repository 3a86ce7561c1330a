"""What ``haiku-mqa generate`` can be told, and what cannot be told at once."""

from __future__ import annotations

import argparse
import itertools

from haiku_mqa.cli import _options, _sampling
from haiku_mqa.cli._files import check_argument
from haiku_mqa.cli._processes import add_processes

_PENALTIES = ("--repetition-penalty", "--presence-penalty", "--frequency-penalty")
_CHOICES = ("--temperature", "--top-k", "--top-p", "--min-p", "--typical-p")
_GUESSERS = ("--draft", "--prompt-lookup")

# Which options are not for each other, and why.
_APART = (
    (
        ("--beams",),
        ("--samples", "--stop", "--logprobs", *_GUESSERS),
        "beam search prints whole texts, with scores of their own",
    ),
    (
        ("--beams",),
        (*_CHOICES, *_PENALTIES),
        "beam search takes the likeliest texts, whatever is chosen elsewhere",
    ),
    (("--draft",), ("--prompt-lookup",), "only one of them can guess"),
    (
        _GUESSERS,
        ("--samples", "--stop", "--logprobs"),
        "guessing ahead writes one text, to its end",
    ),
    (_GUESSERS, _PENALTIES, "a penalty would count tokens that are only guessed"),
    (_GUESSERS, ("--ring-cache",), "rings cannot forget a wrong guess"),
    (("--chat",), ("--prefix", "--save-prefix"), "a prefix is plain text"),
    (("--prefix",), ("--cache", "--ring-cache"), "its cache stays as it was saved"),
    (
        ("--coordinator",),
        ("--beams", *_GUESSERS, "--prefix", "--save-prefix"),
        "that is for one process",
    ),
)


def add_options(
    parser: argparse.ArgumentParser, *, temperature: str, new_tokens: str
) -> None:
    """Adds all options, in groups.

    Args:
      parser: The verb's.
      temperature: What help says of the temperature where none is given.
      new_tokens: What it says of the number of tokens where none is given.
    """
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text; - reads standard input"
    )
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument("--file", metavar="FILE", help="read the prompt from a file")
    prompt.add_argument(
        "--chat",
        action="store_true",
        help="answer the prompt as a message, through the model's chat template "
        "('haiku-mqa chat' goes on from there)",
    )
    prompt.add_argument(
        "--system", metavar="TEXT", help="with --chat: how the model is to behave"
    )
    prompt.add_argument(
        "--save-prefix",
        metavar="FILE",
        help="keep what the model has read of the prompt, for --prefix",
    )
    prompt.add_argument(
        "--prefix",
        metavar="FILE",
        help="go on from what --save-prefix kept, without reading it again; PROMPT "
        "follows it, and may be left out",
    )
    _add_model(parser)
    text = parser.add_argument_group("text")
    text.add_argument(
        "--max-new-tokens",
        type=_options.whole(1),
        metavar="N",
        help=f"stop after so many tokens (default: {new_tokens})",
    )
    text.add_argument(
        "--stop",
        action="append",
        type=_stop,
        metavar="TEXT",
        help=r"stop before this text, in which \n is a newline; can be given again",
    )
    text.add_argument(
        "--samples",
        type=_options.whole(1),
        metavar="N",
        help="write N texts, each with luck of its own, and print them when all are "
        "done",
    )
    text.add_argument(
        "--logprobs",
        action="store_true",
        help="list how likely the model held each new token",
    )
    _sampling.add_sampling(parser, temperature)
    _sampling.add_penalties(parser)
    _add_other_ways(parser)
    add_processes(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    _options.add_model(
        model,
        default=None,
        shown=f"{_options.PACKED_MODEL}; with --chat {_options.LANGUAGE_MODEL}",
    )
    _options.add_dtype(model)
    _options.add_quantize(model)
    _options.add_mesh(model)
    model.add_argument(
        "--cache",
        choices=("bfloat16", "int8"),
        metavar="DTYPE",
        help="bfloat16 or int8: what the cache is held in, rounded (default: as "
        "--dtype)",
    )
    model.add_argument(
        "--ring-cache",
        action="store_true",
        help="keep no more of the past than sliding windows see: less memory, the "
        "same text",
    )


def _add_other_ways(parser: argparse.ArgumentParser) -> None:
    beams = parser.add_argument_group("beam search")
    beams.add_argument(
        "--beams",
        type=_options.whole(1),
        metavar="N",
        help="search the N likeliest texts, and print them, best first",
    )
    beams.add_argument(
        "--length-penalty",
        type=_options.number,
        metavar="X",
        help="above 0 favours long texts, below 0 short ones (default: 1)",
    )
    guesses = parser.add_argument_group(
        "guessing ahead (speculative decoding): the same text in fewer calls"
    )
    guesses.add_argument(
        "--draft",
        metavar="NAME_OR_PATH",
        help="have a smaller model over the same tokens guess, named as --model is",
    )
    guesses.add_argument(
        "--prompt-lookup",
        action="store_true",
        help="have the text's own past guess: for texts that repeat themselves",
    )


def check_options(args: argparse.Namespace) -> None:
    """Raises ``ValueError`` where options contradict each other.

    Args:
      args: As parsed.

    Raises:
      ValueError: Names the two, and says why.
    """
    for name in ("system", "stop", "draft"):
        value = getattr(args, name)
        for text in value if isinstance(value, list) else [value]:
            check_argument(f"--{name}", text or "")
    if args.system is not None and not args.chat:
        raise ValueError("--system needs --chat")
    if args.length_penalty is not None and args.beams is None:
        raise ValueError("--length-penalty needs --beams")
    for some, others, reason in _APART:
        for one, other in itertools.product(some, others):
            if _is_given(args, one) and _is_given(args, other):
                raise ValueError(f"{one} and {other} exclude each other: {reason}")
    if args.coordinator is not None and "-" in (args.prompt, args.file):
        raise ValueError(
            "--coordinator and - exclude each other: every process has a standard "
            "input of its own"
        )
    check_temperature(args)


def check_temperature(args: argparse.Namespace) -> None:
    """Raises ``ValueError`` where nothing is left to chance that should be.

    Args:
      args: As parsed, with the temperature that is meant, if it is known.

    Raises:
      ValueError: The temperature is 0, and there is a filter or several samples.
    """
    _sampling.check_sampling(args)
    if (args.samples or 1) > 1 and args.temperature == 0:
        raise ValueError(
            "--samples needs --temperature above 0: at 0 all of them are the same"
        )


def _is_given(args: argparse.Namespace, option: str) -> bool:
    name = option.removeprefix("--").replace("-", "_")
    return getattr(args, name) != args.parser.get_default(name)


def _stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must hold some text, and is empty")
    return text.replace("\\n", "\n")
