"""``haiku-mqa zoo``: what models there are, what they cost, whether they obey."""

from __future__ import annotations

from typing import Any

from haiku_mqa.cli import _options, zoo_check, zoo_info, zoo_list

_EPILOG = """\
examples:
  haiku-mqa zoo list
  haiku-mqa zoo info smollm2-135m
  haiku-mqa zoo check mqa-decoder --examples 5
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``zoo`` and its own verbs."""
    parser = _options.add_verb(
        verbs,
        "zoo",
        help="list models, tell what one costs, hold one to the laws",
        run=None,
        epilog=_EPILOG,
    )
    own = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb in (zoo_list, zoo_info, zoo_check):
        verb.add_parser(own)
