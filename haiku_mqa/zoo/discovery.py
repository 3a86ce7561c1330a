"""How installed models are found: by entry point, from metadata alone."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from haiku_mqa.errors import PluginError, unknown_name
from haiku_mqa.zoo.spec import NAME_PATTERN, ModelSpec, check_spec

GROUP = "haiku_zoo.models"
"""The entry-point group that plugins declare their models in."""

_VALUE = re.compile(r"[^\W\d]\w*(\.\w+)*\s*:\s*[^\W\d]\w*(\.\w+)*\s*(\[.*\])?")
_UNNAMED = "(unnamed)"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model that an installed distribution declares; nothing is imported yet.

    Attributes:
      name: What the model is asked for by.
      value: Where its factory is, as ``module:attribute``.
      distribution: The name of the distribution that declares it; where several do,
        all of them.
      distribution_version: The version of that distribution.
      error: Why the entry cannot be loaded, as far as metadata tell; ``None`` where
        nothing speaks against it.
    """

    name: str
    value: str
    distribution: str
    distribution_version: str
    error: str | None = None

    def load(self) -> ModelSpec:
        """Imports the plugin and returns the model that its factory makes.

        Returns:
          What the factory returned, which keeps the contract of ``ModelSpec`` but
          need not be of that class.

        Raises:
          PluginError: The entry's ``error``, or the plugin failed: it raised, or
            exited, at import or in the factory, or broke the contract. The message
            names the entry and its distribution; ``__cause__`` is what was raised.
        """
        if self.error is not None:
            raise PluginError(f"model {self.name!r}: {self.error}")
        try:
            entry_point = metadata.EntryPoint(self.name, self.value, GROUP)
            return check_spec(entry_point.load()(), self.name)
        # A plugin that exits must not end its host; an interrupt is the user's.
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"model {self.name!r} ({self.value}) of {self.distribution} "
                f"{self.distribution_version} could not be loaded: "
                + f"{type(error).__name__}: {error}".removesuffix(": ")
            ) from error


def discover(group: str = GROUP) -> dict[str, Entry]:
    """Returns every model that the installed distributions declare.

    Reads metadata only: no plugin is imported, and neither is jax. What is wrong
    with an entry (a name not of ``[a-z0-9._-]``, a value that is no
    ``module:attribute``, one name declared twice) is told by its ``error``; the
    others are not touched by it. Where one distribution is found twice on
    ``sys.path``, the first counts, as it does for ``import``.

    Args:
      group: The entry-point group to look in.

    Returns:
      Name to entry, sorted by name.

    Example:
      >>> discover("nobody.declares.this")
      {}
    """
    claims: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in _declared(group):
        claims[entry.name].append(entry)
    return {
        name: _only_one(entries) if len(entries) > 1 else entries[0]
        for name, entries in sorted(claims.items())
    }


def load(name: str, group: str = GROUP) -> ModelSpec:
    """Imports one plugin and returns its model.

    Args:
      name: The model's name, as ``discover`` lists it.
      group: The entry-point group to look in.

    Returns:
      What the plugin's factory returned, which keeps the contract of ``ModelSpec``.

    Raises:
      ValueError: No installed distribution declares the name; the message names the
        nearest that is declared.
      PluginError: The plugin could not be used; see ``Entry.load``.

    Example:
      >>> load("smollm2", group="nobody.declares.this")
      Traceback (most recent call last):
      ValueError: unknown model 'smollm2': Allowed: (none)
    """
    entries = discover(group)
    if name not in entries:
        raise unknown_name("model", name, entries)
    return entries[name].load()


def is_path(source: str) -> bool:
    """Returns whether a model's source is a path, and not a name.

    Args:
      source: What a user wrote.

    Returns:
      Whether it ends as a file does, has a separator in it, or is there. So do
      names on the hub, whose folder is found first.

    Example:
      >>> [is_path(source) for source in ("smollm2-135m", "a.gguf", "runs/first")]
      [False, True, True]
    """
    return source.endswith(".gguf") or os.sep in source or Path(source).exists()


def _declared(group: str) -> Iterator[Entry]:
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt")
        except (OSError, ValueError):
            continue  # unreadable: whose entries these are cannot be told
        if not text or group not in text:
            continue  # most distributions: spares parsing their metadata
        name, version = _name_and_version(distribution)
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen and name != _UNNAMED:
            continue
        seen.add(key)
        for line in _section(text, group):
            yield _entry(line, name, version)


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        fields = distribution.metadata
        found = {key: fields[key] for key in ("Name", "Version") if key in fields}
    except Exception:  # damaged metadata differ by Python version in what they raise
        found = {}
    return found.get("Name", _UNNAMED), found.get("Version", "(unknown)")


def _section(text: str, group: str) -> Iterator[str]:
    # importlib.metadata gives up on a whole environment for one malformed line.
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            inside = line[1:-1].strip() == group
        elif inside and line and line[0] not in "#;":
            yield line


def _entry(line: str, distribution: str, version: str) -> Entry:
    name, _, value = (part.strip() for part in line.partition("="))
    error = None
    if not NAME_PATTERN.fullmatch(name):
        error = f"its name must be of [a-z0-9._-], got {name!r}"
    elif not _VALUE.fullmatch(value):
        error = f"its value must be module:attribute, got {value!r}"
    if error is not None:
        error = f"{error}, in {distribution} {version}"
    return Entry(name, value, distribution, version, error)


def _only_one(entries: list[Entry]) -> Entry:
    first = entries[0]
    owners = [f"{e.distribution} {e.distribution_version}" for e in entries]
    if len(set(owners)) == 1:
        error = f"declared {len(entries)} times by {owners[0]}"
    else:
        error = f"declared by {' and by '.join(owners)}; uninstall all but one of them"
    return Entry(
        name=first.name,
        value=", ".join(e.value for e in entries),
        distribution=", ".join(e.distribution for e in entries),
        distribution_version=", ".join(e.distribution_version for e in entries),
        error=error,
    )
