"""``haiku-mqa zoo check``: whether a model obeys the laws of decoders."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli import _options
from haiku_mqa.cli._failures import MissingExtra
from haiku_mqa.cli._models import check_name

if TYPE_CHECKING:
    from haiku_mqa.testing import LawResult, Report
    from haiku_mqa.zoo import ModelSpec

_DESCRIPTION = """\
Hold a model to the laws that every decoder obeys: that later tokens change nothing
earlier, that decoding with a cache is the full forward, that padding does not
matter, and more. Each law is tried on random weights and drawn inputs; the table
tells the largest error seen. Exits with 1 if a law is broken.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``check``."""
    parser = _options.add_verb(
        verbs,
        "check",
        help="hold a model to the laws of decoders",
        run=run,
        description=_DESCRIPTION,
        epilog="needs Hypothesis: pip install 'haiku-mqa[test]'",
    )
    parser.add_argument("name", metavar="NAME", help="as 'zoo list' shows it")
    parser.add_argument(
        "--examples",
        type=_options.whole(1, 100_000),
        metavar="N",
        default=25,
        help="how many inputs each law is tried on at most (default: %(default)s)",
    )
    parser.add_argument(
        "--laws",
        type=_names,
        metavar="NAMES",
        help="the laws to try, with commas between (default: all that speak of it)",
    )
    _options.add_seed(parser, "the drawn inputs")


def run(args: argparse.Namespace) -> int:
    """Prints how a model fares under each law.

    Args:
      args: With ``name``, ``examples``, ``laws`` and ``seed``.

    Returns:
      0; 1 where a law is broken.

    Raises:
      ValueError: There is no such model, or no such law for it.
      PluginError: The model's plugin failed.
      MissingExtra: Hypothesis is not installed.
    """
    check_name(args.name)
    if importlib.util.find_spec("hypothesis") is None:
        raise MissingExtra("checking laws", "test")
    prepare_jax()
    from haiku_mqa.zoo import load

    spec = load(args.name)
    report = _checked(spec, args)
    print(f"{spec.name} {spec.version}, seed {args.seed}")
    print(report)
    return 0 if report.passed else 1


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _checked(spec: ModelSpec, args: argparse.Namespace) -> Report:
    from tqdm import tqdm

    from haiku_mqa.testing import DECODER_LAWS, check_decoder

    # On a terminal alone: the table tells all of it again.
    with tqdm(
        total=len(args.laws or DECODER_LAWS),
        unit="law",
        file=sys.stderr,
        disable=None,
        leave=False,
    ) as bar:

        def tell(result: LawResult) -> None:
            bar.set_postfix_str(result.law, refresh=False)
            bar.update()

        return check_decoder(
            spec,
            laws=args.laws,
            examples=args.examples,
            seed=args.seed,
            on_law=tell,
        )
