"""Checkpoints that are whole or are not there, whatever moment a run is killed at."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from haiku_mqa.errors import FormatError
from haiku_mqa.sharding import processes
from haiku_mqa.training.run.arrays import join_parts, read_arrays, write_parts

_ARRAYS = "arrays"
_ABOUT = "about.json"
_CONTENTS = "contents.json"
_SAVING = ".saving-"
_NAME = re.compile(r"\d{8,}")
# How the library under orbax, which raises no OSError, says what the system said.
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


class Checkpoints:
    """The folder of a run's checkpoints, one folder for each, named by its step.

    One is written under another name, everything in it is synced to the disk, and
    then it gets its own name: under that name it is never half written. A table of
    its arrays and of its files' SHA-256 lies beside them, so that one that a disk has
    changed, or that another model's run wrote, is refused before it is read.

    Of several processes all save and restore together, each the parts of arrays that
    its devices hold. The first does the rest.

    Example:
      >>> import tempfile
      >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
      >>> checkpoints.save(250, {"w": np.arange(3)}, {"best": None}).name
      '00000250'
      >>> checkpoints.steps()
      [250]
      >>> checkpoints.restore(250, {"w": np.zeros(3, int)})
      ({'w': array([0, 1, 2])}, {'best': None})
    """

    def __init__(self, folder: Path):
        """Looks at a folder; it is made when the first checkpoint is.

        Args:
          folder: Of the checkpoints.
        """
        self.folder = folder

    def path(self, step: int) -> Path:
        """Returns where the checkpoint of a step lies, or would.

        Args:
          step: How many steps are done.
        """
        return self.folder / f"{step:08d}"

    def steps(self) -> list[int]:
        """Returns the steps that there is a checkpoint of, lowest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if _NAME.fullmatch(name))

    def remove_leftovers(self) -> None:
        """Removes what a killed run had not finished."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _SAVING in path.name:
                    shutil.rmtree(path)

    def save(self, step: int, tree: Any, about: Mapping[str, Any]) -> Path:
        """Writes a checkpoint; of several processes, all call it.

        Args:
          step: How many steps are done; there is no checkpoint of it yet.
          tree: A pytree of arrays, over the devices of all processes.
          about: What else to remember, as plain data that JSON can hold.

        Returns:
          Its folder.

        Raises:
          OSError: It could not be written, for example because the disk is full.
            Nothing of it is left, and other checkpoints are as they were.
          ProcessError: Another process could not write its part; it says why.
        """
        is_first = processes.is_first()
        draw = processes.largest(secrets.randbits(31) if is_first else 0)
        part = self._saving(step, draw)
        try:
            with processes.together():
                if is_first:
                    self._begin(part, tree)
            with processes.together():
                write_parts(part / _ARRAYS, tree)
            with processes.together():
                if is_first:
                    self._finish(part, step, tree, about)
        except Exception as error:
            number = _system_error(error)
            if number is None:
                raise
            raise OSError(number, self._told(step, number)) from error
        finally:
            if is_first:
                shutil.rmtree(part, ignore_errors=True)
        return self.path(step)

    def _saving(self, step: int, draw: int) -> Path:
        return self.folder / f"{step:08d}{_SAVING}{draw:08x}"

    def _begin(self, part: Path, tree: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _require_room(self.folder, tree)
        part.mkdir()
        (part / _ARRAYS).mkdir()

    def _finish(
        self, part: Path, step: int, tree: Any, about: Mapping[str, Any]
    ) -> None:
        join_parts(part / _ARRAYS)
        _write_json(part / _ABOUT, dict(about))
        contents = {"arrays": _described(tree), "files": _digests(part)}
        _write_json(part / _CONTENTS, contents)
        _sync_all(part)
        os.rename(part, self.path(step))
        _sync(self.folder)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint; of several processes, all call it.

        Args:
          step: Which one.
          like: A pytree of the same structure, of arrays or of their shapes, which may
            say where each lies.

        Returns:
          The pytree, of arrays where `like` says or of NumPy's, and what else was
          remembered.

        Raises:
          FormatError: It is damaged, or its arrays are not those of `like`.
          ProcessError: Another process could not read its part; it says why.
        """
        path = self.path(step)
        with processes.together():
            contents, about = _opened(path, checks=processes.is_first())
            _require_arrays(path, contents["arrays"], _described(like))
        with processes.together():
            return read_arrays(path / _ARRAYS, like), about

    def keep(self, *steps: int) -> None:
        """Removes the checkpoints of all other steps.

        Args:
          *steps: Those to keep.
        """
        for step in set(self.steps()) - set(steps):
            # Renamed first: what is half removed must not look like a checkpoint.
            doomed = self._saving(step, secrets.randbits(31))
            os.rename(self.path(step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def about(self, step: int) -> dict[str, Any]:
        """Returns what else a checkpoint remembers.

        Args:
          step: Which one.

        Raises:
          OSError: It cannot be read.
        """
        return json.loads((self.path(step) / _ABOUT).read_bytes())

    def _told(self, step: int, number: int) -> str:
        steps = self.steps()
        last = f"the last whole one is {self.path(steps[-1])}" if steps else "none is"
        return (
            f"checkpoint of step {step} could not be saved in {self.folder}: "
            f"{os.strerror(number)}; {last}"
        )


# --- What a checkpoint holds ----------------------------------------------------------


def _opened(path: Path, *, checks: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what a checkpoint says of its contents, and what else is remembered."""
    try:
        contents = json.loads((path / _CONTENTS).read_bytes())
        if checks:
            _require_files(path, contents["files"])
        about = json.loads((path / _ABOUT).read_bytes())
        return contents, about
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"checkpoint {path} is damaged ({_first_line(error)}); without its "
            "folder, the run goes on from the one before"
        ) from error


def _described(tree: Any) -> dict[str, str]:
    """Returns the data type and the shape of each array, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{np.dtype(leaf.dtype)} {list(leaf.shape)}"
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_files(path: Path, digests: Mapping[str, str]) -> None:
    # Before orbax sees them: its threads go on, and print, after it has raised.
    for name, digest in digests.items():
        if _digest(path / name) != digest:
            raise ValueError(f"its file {name} has changed since it was written")


def _require_arrays(
    path: Path, found: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        there, here = found.get(name, "missing"), wanted.get(name, "missing")
        if there != here:
            raise FormatError(
                f"checkpoint {path} is of another model or optimizer: {name} is "
                f"{there} there, and {here} here"
            )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value) + "\n")


# --- The disk -------------------------------------------------------------------------


def _require_room(folder: Path, tree: Any) -> None:
    # Orbax finds out by itself, but its threads then print a traceback for each array.
    if shutil.disk_usage(folder).free < sum(x.nbytes for x in jax.tree.leaves(tree)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_all(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # elsewhere a folder cannot be opened to be synced
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: Exception) -> int | None:
    """Returns the system's number of an error, if it is one of the system's."""
    if isinstance(error, OSError):
        return error.errno
    found = _SYSTEM_ERROR.search(str(error))
    return int(found[1]) if found else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
