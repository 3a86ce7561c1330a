"""What ``bench train`` holds against each other: this package's step, and torch's."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

import haiku_mqa
from haiku_mqa.bench import torch_llama
from haiku_mqa.bench.processes import Answering
from haiku_mqa.model import Model, Params
from haiku_mqa.training import (
    Batch,
    OptimizerConfig,
    init_train_state,
    make_train_step,
)

OPTIMIZER = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=3e-4)


class Trainer(Protocol):
    """Something that trains the model of this benchmark.

    Attributes:
      name: What it is called, with its version.
    """

    name: str

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Returns how many seconds so many steps took, and their losses."""
        ...


class OurTrainer:
    """This package's step, compiled, and fed from the host."""

    def __init__(self, model: Model, params: Params, batches: Sequence[Batch]):
        """Takes the model as it was drawn.

        Args:
          model: The model.
          params: Its parameters.
          batches: Read in turn.
        """
        self.name = f"haiku_mqa {haiku_mqa.__version__}"
        self._step = jax.jit(make_train_step(model, OPTIMIZER), donate_argnums=0)
        self._state = init_train_state(OPTIMIZER, params)
        self._batches = batches
        self._done = 0

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Trains.

        Args:
          steps: How many.

        Returns:
          Seconds, and the loss of each step.
        """
        losses = []
        start = time.perf_counter()
        for _ in range(steps):
            batch = self._batches[self._done % len(self._batches)]
            self._state, metrics = self._step(self._state, batch, None)
            losses.append(metrics.loss)
            self._done += 1
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - start
        return seconds, [loss.item() for loss in losses]


class TorchTrainer:
    """``torch_llama``, in a process of its own: it may have another Python."""

    def __init__(self, python: str, folder: Path, settings: dict[str, Any]):
        """Starts it.

        Args:
          python: A Python that has torch.
          folder: Has its ``arrays.npz``; gets its ``settings.json``.
          settings: Of model and optimizer, and whether ``torch.compile`` is used.

        Raises:
          OSError: It could not be started.
          ValueError: It ended at once; the message has its last line.
        """
        (folder / "settings.json").write_text(json.dumps(settings))
        script = Path(torch_llama.__file__).resolve()
        self._process = Answering(python, script, [str(folder)])
        version = self._process.greeting["version"]
        kind = "torch.compile" if settings["compile"] else "eager"
        self.name = f"torch {version}, {kind}"

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Trains.

        Args:
          steps: How many.

        Returns:
          Seconds, and the loss of each step.

        Raises:
          ValueError: The process ended.
        """
        answer = self._process.ask(str(steps))
        return answer["seconds"], answer["losses"]

    def close(self) -> None:
        """Ends the process."""
        self._process.close()
