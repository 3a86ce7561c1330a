"""The folder of a run: what it is of, and whose it is right now."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from haiku_mqa import __version__, model_folder
from haiku_mqa._files import write_whole
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Params
from haiku_mqa.text import Tokenizer, load_tokenizer
from haiku_mqa.training.corpus import Corpus
from haiku_mqa.training.run.checkpoints import Checkpoints
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.given import digest

try:
    import fcntl
except ImportError:  # where there are no such locks, people must keep apart
    fcntl = None

FORMAT = "haiku_mqa run 1"
RUN = "run.json"
LOCK = "lock"
_CHECKPOINTS = "checkpoints"
_LIBRARIES = ("jax", "jaxlib", "dm-haiku", "optax", "numpy")
_OURS = {
    RUN,
    LOCK,
    _CHECKPOINTS,
    model_folder.CONFIG,
    model_folder.TOKENIZER,
    model_folder.WEIGHTS,
}


class RunFolder:
    """What a run writes, and where.

    It is a model folder, too: ``config.json``, ``tokenizer.json`` and the best
    weights so far. ``run.json`` is written last when a run begins, so a folder with
    one is whole.

    Attributes:
      path: Of the folder.
      checkpoints: Those in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Looks at a folder, and writes nothing.

        Args:
          path: Of the folder, which need not exist.
        """
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / _CHECKPOINTS)

    @property
    def has_run(self) -> bool:
        """Whether a run began here."""
        return (self.path / RUN).exists()

    def begin(
        self,
        config: RunConfig,
        decoder_config: DecoderConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        params: Params | None = None,
    ) -> None:
        """Writes what a new run is of.

        Args:
          config: Of the run.
          decoder_config: Of its model.
          corpus: What it reads.
          tokenizer: What reads it.
          params: What it begins from, if they are not drawn.

        Raises:
          ValueError: There are files that no run wrote.
          OSError: The folder cannot be written.
        """
        self._refuse_foreign_files()
        tokenizer.save(self.path / model_folder.TOKENIZER)
        model_folder.write_config(self.path, decoder_config)
        data = {
            "format": FORMAT,
            "config": config.to_dict(),
            "corpus": corpus.sha256,
            "tokenizer": self._tokenizer_digest(),
            "params": None if params is None else digest(params),
            "versions": _versions(),
        }
        write_whole(self.path / RUN, (json.dumps(data, indent=2) + "\n").encode())

    def check(
        self,
        config: RunConfig,
        corpus: Corpus,
        params: Params | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Refuses to go on as another run than the one that began here.

        Args:
          config: Of the run that is asked for.
          corpus: What it would read. Equal text is the same, wherever it lies.
          params: What it would begin from, where they are given.
          tokenizer: What would read it, where it is given.

        Raises:
          ValueError: Something differs; the message lists each field. Or the run
            began from given parameters, had no time for a checkpoint, and they are
            not given again.
          FormatError: ``run.json`` or ``tokenizer.json`` is damaged.
        """
        run = self._read()
        here = _flat({**run["config"], "corpus": run["corpus"]})
        asked = _flat({**config.to_dict(), "corpus": corpus.sha256})
        if here["corpus"] == asked["corpus"]:
            here["data.source"] = asked["data.source"] = None
        differences = [
            f"{name}: {_shown(here, name)} in the folder, {_shown(asked, name)} asked "
            "for"
            for name in dict.fromkeys([*here, *asked])
            if name not in here or name not in asked or here[name] != asked[name]
        ]
        if tokenizer is not None and tokenizer != self.tokenizer():
            differences.append("tokenizer: not the one in the folder")
        if params is not None and digest(params) != run["params"]:
            differences.append("params: not what the run in the folder began from")
        if differences:
            raise ValueError(f"{self.path} holds another run: {'; '.join(differences)}")
        if params is None and run["params"] and not self.checkpoints.steps():
            raise ValueError(
                f"{self.path} holds a run that began from given parameters and was "
                "stopped before its first checkpoint: give them again"
            )
        if run["tokenizer"] != self._tokenizer_digest():
            raise FormatError(
                f"{self.path / model_folder.TOKENIZER} is not the one that the run "
                "began with"
            )

    def write_weights(self, params: Params, metadata: Mapping[str, str]) -> None:
        """Writes what the run has come to so far.

        Args:
          params: The best parameters.
          metadata: What the file says of them.

        Raises:
          OSError: They could not be written, for example because the disk is full;
            those before are whole.
        """
        try:
            model_folder.write_weights(self.path, params, metadata)
        except OSError as error:
            path = self.path / model_folder.WEIGHTS
            told = f"{path} could not be written: {error.strerror}; it is as it was"
            raise OSError(error.errno, told) from error

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that the run began with."""
        return load_tokenizer(self.path / model_folder.TOKENIZER)

    def remove_leftovers(self) -> None:
        """Removes what a killed run had not finished writing."""
        self.checkpoints.remove_leftovers()
        for name in _OURS:
            for part in self.path.glob(f".{name}-*.part"):
                part.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the folder for this process, and makes it where there is none.

        The lock goes with the process, however it ends. A folder in which no run
        began is left as it was found.

        Yields:
          Nothing.

        Raises:
          ValueError: Another process has it, or it is no folder.
        """
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"{self.path} must be a folder, and is a file") from None
        descriptor = self._take_lock()
        try:
            yield
        finally:
            if not self.has_run:
                with contextlib.suppress(OSError):
                    (self.path / LOCK).unlink()
                    if made:
                        self.path.rmdir()
            os.close(descriptor)

    def _take_lock(self) -> int:
        path = self.path / LOCK
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it may have removed the file that was locked here.
                if os.path.exists(path) and os.path.samestat(
                    os.fstat(descriptor), os.stat(path)
                ):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                    return descriptor
            except BlockingIOError:
                owner = os.read(descriptor, 32).decode().strip() or "unknown"
                os.close(descriptor)
                raise ValueError(
                    f"{self.path} is in use by another process, {owner}: wait for it, "
                    "or stop it, or use another folder"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _read(self) -> dict[str, Any]:
        path = self.path / RUN
        try:
            run = json.loads(path.read_bytes())
            if not isinstance(run, dict) or run.get("format") != FORMAT:
                raise ValueError(f"format must be {FORMAT!r}")
            if missing := {"config", "corpus", "tokenizer", "params"} - set(run):
                raise ValueError(f"{', '.join(sorted(missing))} is missing")
            # By way of the config, so that fields which are new have their defaults.
            run["config"] = RunConfig.from_dict(run["config"]).to_dict()
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path} is damaged: {error}") from None
        return run

    def _tokenizer_digest(self) -> str:
        data = (self.path / model_folder.TOKENIZER).read_bytes()
        return hashlib.sha256(data).hexdigest()

    def _refuse_foreign_files(self) -> None:
        names = {path.name for path in self.path.iterdir()}
        if foreign := sorted(names - _OURS):
            raise ValueError(
                f"{self.path} must be empty or hold a run, and it has "
                f"{', '.join(foreign[:5])}{', …' if len(foreign) > 5 else ''}"
            )


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    own = {"haiku_mqa": str(__version__), "python": platform.python_version()}
    return own | libraries


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name == "corpus":
        return f"sha256 {values[name][:12]}…"
    return repr(values[name]) if name in values else "nothing"
