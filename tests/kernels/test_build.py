"""Kernels are compiled on request, and never stand in the way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from haiku_mqa import kernels
from haiku_mqa.cli.main import main
from haiku_mqa.errors import BuildError

_PRODUCT = """
import jax.numpy as jnp
from haiku_mqa import kernels, ops
y = ops.quantized_dot(jnp.ones((1, 3)), ops.quantize(jnp.eye(3), axis=1))
print(kernels.is_loaded(), y.round(3).tolist())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(tmp_path))
    monkeypatch.setenv("HAIKU_MQA_KERNELS", "on")
    return tmp_path


def _product(**environment):
    command = [sys.executable, "-c", _PRODUCT]
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_what_was_built_is_used_from_then_on_unless_it_is_switched_off(capsys):
    assert _product().stdout == "False [[1.0, 1.0, 1.0]]\n"
    assert kernels.find() is None
    assert kernels.build() == kernels.find()
    assert _product().stdout == "True [[1.0, 1.0, 1.0]]\n"
    assert _product(HAIKU_MQA_KERNELS="off").stdout == "False [[1.0, 1.0, 1.0]]\n"


def test_a_damaged_library_is_told_of_and_done_without():
    kernels.build().write_bytes(b"\x7fELF and no more")
    done = _product()
    assert done.stdout == "False [[1.0, 1.0, 1.0]]\n"
    assert "cannot be loaded, and is done without" in done.stderr


def test_the_extra_compiler_serves_where_there_is_no_other(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.compiler.shutil, "which", lambda name: None)
    words = kernels.find_compiler()
    assert words[1:3] == ("-m", "ziglang")
    kernels.build(words)
    assert _product().stdout == "True [[1.0, 1.0, 1.0]]\n"


def test_no_compiler_at_all_is_told_with_what_to_do(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(kernels.compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"install gcc or clang.*haiku-mqa\[kernels\]"):
        kernels.build()


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (["no-such-compiler"], "no-such-compiler cannot be started"),
        (["false"], "false failed"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(compiler, message, cache):
    with pytest.raises(BuildError, match=message):
        kernels.build(compiler)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_the_command_line_builds_them_and_tells_of_them(capsys, monkeypatch):
    monkeypatch.setenv("HAIKU_MQA_KERNELS", "off")
    assert main(["kernels", "info"]) == 1
    assert "(not built)" in capsys.readouterr().out
    assert main(["kernels", "build"]) == 0
    assert capsys.readouterr().out == f"{kernels.library_path()}\n"
    assert main(["kernels", "info"]) == 1  # switched off
    assert capsys.readouterr().out.endswith("used     no\n")
    assert main(["kernels", "build", "--compiler", "false"]) == 1
    assert "false failed" in capsys.readouterr().err
