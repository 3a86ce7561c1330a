"""The options that say how a token is chosen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from haiku_mqa.cli._options import (
    add_seed,
    number,
    positive,
    share,
    temperature,
    whole,
)

if TYPE_CHECKING:
    from haiku_mqa.generation import Sampling

_FILTERS = ("top_k", "top_p", "min_p", "typical_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def add_sampling(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the temperature, the seed and the filters.

    Args:
      parser: Of a verb.
      default: What help says of the temperature where none is given.
    """
    choice = parser.add_argument_group("choice of tokens")
    choice.add_argument(
        "--temperature",
        type=temperature,
        metavar="X",
        help="0 always takes the likeliest token; higher is more varied "
        f"(default: {default})",
    )
    add_seed(choice, "the choice where --temperature is above 0")
    filters = parser.add_argument_group("filters, for a temperature above 0")
    filters.add_argument(
        "--top-k",
        type=whole(1),
        metavar="N",
        help="choose among the N likeliest tokens (default: all)",
    )
    filters.add_argument(
        "--top-p",
        type=share,
        metavar="P",
        help="choose among the likeliest tokens that reach probability P together "
        "(default: all)",
    )
    filters.add_argument(
        "--min-p",
        type=share,
        metavar="P",
        help="choose among tokens at least P times as likely as the likeliest "
        "(default: all)",
    )
    filters.add_argument(
        "--typical-p",
        type=share,
        metavar="P",
        help="choose among the least surprising tokens, by the mean, that reach "
        "probability P together (default: all)",
    )


def add_penalties(parser: argparse.ArgumentParser) -> None:
    """Adds the options that make tokens of the text so far less likely.

    Args:
      parser: Of a verb that has ``add_sampling``'s, too.
    """
    penalties = parser.add_argument_group("penalties")
    penalties.add_argument(
        "--repetition-penalty",
        type=positive,
        metavar="X",
        default=1.0,
        help="divide the logits of tokens that came before, 1.1 say (default: 1, off)",
    )
    penalties.add_argument(
        "--presence-penalty",
        type=number,
        metavar="X",
        default=0.0,
        help="take X from the logits of tokens in the new text (default: 0)",
    )
    penalties.add_argument(
        "--frequency-penalty",
        type=number,
        metavar="X",
        default=0.0,
        help="take X from a token's logit each time it is in the new text (default: 0)",
    )


def check_sampling(args: argparse.Namespace) -> None:
    """Raises ``ValueError`` where a filter is asked for and nothing is left to chance.

    Args:
      args: As parsed, with the options of ``add_sampling``.

    Raises:
      ValueError: The temperature is 0, and there is a filter.
    """
    for name in _FILTERS:
        if getattr(args, name) is not None and args.temperature == 0:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} needs --temperature above 0: at 0 the likeliest token is "
                "taken always"
            )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Returns what the options ask for.

    Args:
      args: As parsed, with a temperature.

    Raises:
      ValueError: A number is out of what is allowed; the message names it.
    """
    from haiku_mqa.generation import Sampling

    given = vars(args)
    names = ("temperature", *_FILTERS, *_PENALTIES)
    return Sampling(**{name: given[name] for name in names if name in given})
