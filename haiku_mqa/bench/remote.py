"""Peers in processes of their own, run by a Python that has them."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from haiku_mqa.bench import peer_script
from haiku_mqa.bench.bandwidth import cores
from haiku_mqa.bench.decode import Timing, weight_bytes_per_token
from haiku_mqa.bench.peers import (
    llama_arrays,
    llama_words,
    missing_line,
    unlike_llama,
)
from haiku_mqa.bench.processes import Answering
from haiku_mqa.model import Model, Params

SCRIPT = Path(peer_script.__file__).resolve()
DTYPES = ("float32", "bfloat16")


class RemotePeer:
    """A program in a process of its own, as a ``Program``."""

    def __init__(self, process: Answering, dtype: str, weight_bytes: int):
        """Takes a process that is ready.

        Args:
          process: Which answers what ``peer_script`` is asked.
          dtype: What its weights are held in.
          weight_bytes: Of the weights that it reads for each token.
        """
        self.name: str = process.greeting["name"]
        self.dtype = dtype
        self.weight_bytes = weight_bytes
        self._process = process

    def run(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Continues a prompt greedily by exactly ``new_tokens`` tokens.

        Args:
          prompt: Token ids.
          new_tokens: How many tokens are to be chosen.

        Returns:
          How long it took, and the tokens.
        """
        return self.run_rows([prompt], new_tokens)

    def run_rows(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        """Continues prompts of one length together.

        Args:
          prompts: Token ids, a list for each row.
          new_tokens: How many tokens are to be chosen in each row.

        Returns:
          How long it took, and the tokens of the first row.

        Raises:
          ValueError: The process ended.
        """
        rows = [list(map(int, prompt)) for prompt in prompts]
        asked = {"prompts": rows, "new_tokens": new_tokens}
        answer = self._process.ask(json.dumps(asked))
        return Timing(
            answer["prefill_seconds"],
            answer["decode_seconds"],
            tuple(answer["tokens"]),
        )


class Peers:
    """Processes of peers, which end with the block.

    Example:
      >>> with Peers("no-such-python") as peers:
      ...     peers.add_llama_cpp(None, context=64)
      ...     peers.programs, peers.absent
      ([], ['llama.cpp is not run: no GGUF file is given (--gguf)'])
    """

    def __init__(self, python: str | None):
        """Starts nothing yet.

        Args:
          python: A Python that has the peers; this one if ``None``.
        """
        self._python = python or sys.executable
        self._stack = contextlib.ExitStack()
        self.programs: list[RemotePeer] = []
        self.absent: list[str] = []

    def __enter__(self) -> Peers:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes."""
        self._stack.close()

    def add_transformers(
        self, model: Model, params: Params, dtypes: Sequence[str] = DTYPES
    ) -> None:
        """Starts transformers with a model's weights, or says why it is left out.

        Args:
          model: The model.
          params: Its weights.
          dtypes: What to hold them in, a process for each.
        """
        folder = self.write_weights(model, params)
        for dtype in dtypes if folder else ():
            itemsize = {"float32": 4, "bfloat16": 2}[dtype]
            size = weight_bytes_per_token(model, params, itemsize)
            words = ("transformers", str(folder), dtype)
            self._start(f"transformers, {dtype},", words, dtype, size)

    def add_drawn_transformers(self, model: Model, params: Params, device: str) -> None:
        """Starts transformers with a model's shape, and weights that it draws itself.

        Args:
          model: The model.
          params: Its weights, of which the shapes are looked at.
          device: Where it is to run: ``"cpu"``, or ``"gpu"``.
        """
        places = {"cpu": "cpu", "gpu": "cuda"}
        if device not in places:
            self.absent.append(f"transformers is not run: torch has no {device}")
        elif self._takes(model, None):
            dtype = model.config.dtype
            shape = json.dumps(llama_words(model.config))
            size = weight_bytes_per_token(model, params)
            words = ("drawn", shape, dtype, places[device])
            self._start("transformers", words, dtype, size)

    def write_weights(
        self, model: Model, params: Params, name: str | None = None
    ) -> Path | None:
        """Writes weights as ``peer_script`` reads them.

        Args:
          model: The model.
          params: Its weights.
          name: What it is called, where there are several.

        Returns:
          The folder, which is gone after the block; ``None`` where nobody could read
          it: the model is no Llama, or this Python lacks torch, as is then said among
          the absent.
        """
        if not self._takes(model, name):
            return None
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"config": llama_words(model.config), "threads": cores()}
        (folder / "settings.json").write_text(json.dumps(settings))
        arrays: dict[str, Any] = dict(llama_arrays(model.config, params))
        np.savez(folder / "arrays.npz", **arrays)
        return folder

    def add_llama_cpp(self, gguf: Path | None, *, context: int) -> None:
        """Starts llama.cpp, or says why it is not run.

        Args:
          gguf: The model's file; ``None`` where it has none.
          context: Room of its cache, in tokens.
        """
        if gguf is None:
            self.absent.append("llama.cpp is not run: no GGUF file is given (--gguf)")
            return
        words = ("llama.cpp", str(gguf), str(context), str(cores()))
        self._start("llama.cpp", words, gguf.suffix[1:], gguf.stat().st_size)

    def _takes(self, model: Model, name: str | None) -> bool:
        """Whether transformers may be run; where not, the absent say why."""
        missing = missing_line() if self._python == sys.executable else None
        if missing is not None:
            if missing not in self.absent:
                self.absent.append(missing)
            return False
        other = unlike_llama(model.config)
        if other:
            self.absent.append(
                f"{'' if name is None else f'{name}: '}transformers is left out: its "
                f"Llama has no other {', '.join(other)} than its own"
            )
            return False
        return True

    def _start(
        self, name: str, words: Sequence[str], dtype: str, weight_bytes: int
    ) -> None:
        try:
            process = Answering(self._python, SCRIPT, words)
        except (OSError, ValueError) as error:
            self.absent.append(f"{name} is not run: {error}")
            return
        self._stack.callback(process.close)
        self.programs.append(RemotePeer(process, dtype, weight_bytes))


def parameters(params: Params) -> int:
    """Returns how many numbers a model has.

    Args:
      params: Its weights.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
