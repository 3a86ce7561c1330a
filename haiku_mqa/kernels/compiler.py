"""From the kernels' source to a library for the machine at hand."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from haiku_mqa._files import write_whole
from haiku_mqa.errors import BuildError
from haiku_mqa.kernels.library import SOURCE, library_path, load

# Sums may be reordered, as vector instructions need; NaN and infinity stay what they
# are, which -ffast-math would not grant.
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-fPIC",
    "-shared",
)


def build(compiler: Sequence[str] | None = None) -> Path:
    """Compiles the kernels for this machine into the cache folder.

    Programs that are compiled from now on use them; a process that has loaded older
    ones goes on with those.

    Args:
      compiler: Words that start a C compiler with GCC's options; if ``None``,
        ``$CC``, or the first of gcc, clang and cc that is there, or the one that
        the extra ``kernels`` installs.

    Returns:
      The library. Only a whole one takes its place.

    Raises:
      BuildError: There is no C compiler, or it failed.
      FetchError: There is no cache folder.
      OSError: The cache folder cannot be written.
    """
    words = tuple(compiler or find_compiler())
    target = library_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        headers = f"-I{jax.ffi.include_dir()}"
        command = [*words, *_FLAGS, headers, str(SOURCE), "-o", str(made), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{words[0]} cannot be started: {error}") from None
        if done.returncode != 0 or not made.is_file():
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise BuildError(f"{' '.join(words)} failed: {said}")
        write_whole(target, made.read_bytes())
    if not load():  # what is known to XLA cannot be made known anew
        load.cache_clear()
    return target


def find_compiler() -> tuple[str, ...]:
    """Returns the words that start a C compiler.

    GCC is preferred: of these it alone finds the instructions for products of int16.

    Raises:
      BuildError: There is none.
    """
    if own := os.environ.get("CC", "").split():
        return tuple(own)
    for name in ("gcc", "clang", "cc"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        # Else it checks sums for overflow, which no vector instruction does.
        return (sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined")
    raise BuildError(
        "no C compiler: install gcc or clang, name one in CC, or "
        "pip install 'haiku-mqa[kernels]'"
    )
