"""Fails a build that leaves a public name out of the inventory."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from house_names import undocumented
from sphinx.util import logging
from sphinx.util.inventory import InventoryFile

logger = logging.getLogger(__name__)


def check(app: Any, exception: Exception | None) -> None:
    inventory = Path(app.outdir) / "objects.inv"
    if exception is not None or not inventory.exists():
        return
    with inventory.open("rb") as file:
        entries = InventoryFile.load(file, "", posixpath.join)
    documented = {
        name
        for kind, names in _as_dict(entries).items()
        if kind.startswith("py:")
        for name in names
    }
    for name in undocumented(documented):
        logger.warning("%s is a public name that no page of docs/api documents", name)


def _as_dict(entries: Any) -> dict[str, Any]:
    return entries.data if hasattr(entries, "data") else entries


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
