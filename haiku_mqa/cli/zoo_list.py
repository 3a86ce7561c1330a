"""``haiku-mqa zoo list``: the models that installed distributions declare."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._screen import table
from haiku_mqa.errors import PluginError
from haiku_mqa.zoo import Entry, discover
from haiku_mqa.zoo.discovery import GROUP

_DESCRIPTION = """\
List the models that installed distributions declare. Reads their metadata alone,
unless --load asks for each to be imported.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``list``."""
    parser = _options.add_verb(
        verbs,
        "list",
        help="list the models that are installed",
        run=run,
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--load",
        action="store_true",
        help="import each model too, and exit with 1 if one fails",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the installed models.

    Args:
      args: With ``load`` and ``json``.

    Returns:
      0; 1 where ``--load`` was given and a model could not be loaded.
    """
    entries = list(discover().values())
    if args.load:
        entries = [_tried(entry) for entry in entries]
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
    elif entries:
        print(_table(entries))
    else:
        print(f"no installed distribution declares models in the group {GROUP}")
    return int(args.load and any(entry.error for entry in entries))


def _tried(entry: Entry) -> Entry:
    try:
        entry.load()
    except PluginError as error:
        return dataclasses.replace(entry, error=str(error))
    return entry


def _table(entries: list[Entry]) -> str:
    head = ["name", "distribution", "version"]
    rows = [[e.name, e.distribution, e.distribution_version] for e in entries]
    # A column that is nearly always empty is shown where it has something to say.
    if any(entry.error for entry in entries):
        head.append("error")
        for row, entry in zip(rows, entries, strict=True):
            row.append(" ".join((entry.error or "").split()))
    return table(head, rows)
