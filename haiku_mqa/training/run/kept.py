"""What a run has come to: its best parameters, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import jax

from haiku_mqa import model_folder
from haiku_mqa.model import Model, Params
from haiku_mqa.sharding import processes
from haiku_mqa.training.run.folder import RunFolder
from haiku_mqa.training.run.programs import Carry


class Kept:
    """What is kept of a run, in its folder or, where it has none, in memory.

    Attributes:
      saved_at: The newest checkpoint's step; ``None`` before there is one.
    """

    def __init__(self, model: Model, folder: RunFolder | None, *, writes: bool = True):
        """Begins with nothing.

        Args:
          model: The run's.
          folder: The run's, which may have checkpoints; ``None`` if nothing is
            written.
          writes: Whether this process writes; of several, one does.
        """
        self.saved_at: int | None = None
        self._model, self._folder, self._writes = model, folder, writes
        self._best: tuple[int, float] | None = None
        self._best_params: Params | None = None
        self._validation: tuple[int, float] | None = None

    def restore(self, like: Callable[[], Carry]) -> Carry | None:
        """Returns what the newest checkpoint holds, if there is one.

        Args:
          like: Returns shapes and dtypes of what it holds, and where that lies; called
            if there is one.
        """
        if self._folder is None:
            return None
        checkpoints = self._folder.checkpoints
        # What the first sees counts: another may see a folder on the network late.
        steps = checkpoints.steps() if self._writes else []
        newest = processes.largest(max(steps, default=-1))
        if newest < 0:
            return None
        tree, about = checkpoints.restore(newest, like())
        self._best = about["best"] and tuple(about["best"])
        self.saved_at = newest
        # Copies: the step's donation must not reach into NumPy's memory.
        return jax.tree.map(lambda x: jax.numpy.array(x, copy=True), tree)

    def judge(self, step: int, loss: float, carry: Carry) -> bool:
        """Keeps the parameters if they are the best so far, and returns if they are.

        Args:
          step: After which they were evaluated.
          loss: Over the whole validation split.
          carry: After that step.
        """
        self._validation = step, loss
        if math.isnan(loss) or (self._best is not None and loss >= self._best[1]):
            return False
        self._best = step, loss
        self._export(step, carry, {"validation_loss": repr(loss)})
        return True

    def save(self, step: int, carry: Carry) -> Path | None:
        """Writes a checkpoint, and returns its path if there was none of this step.

        Of several processes all call it, and the one that writes gets a path.

        Args:
          step: The last that was done.
          carry: After it.
        """
        if self._folder is None or step == self.saved_at:
            return None
        judged = self._validation
        loss = judged[1] if judged and judged[0] == step else None
        about = {"step": step, "validation_loss": loss, "best": self._best}
        path = self._folder.checkpoints.save(step, carry, about)
        self.saved_at = step
        if not self._writes:
            return None
        self._folder.checkpoints.keep(step, *self._best_saved(self._folder))
        return path

    def parameters(self, step: int, carry: Carry) -> Params:
        """Returns the best parameters: this call's, or those of an earlier one.

        Args:
          step: The last that was done.
          carry: After it; what counts where nothing was evaluated.
        """
        if self._best_params is not None:
            return self._best_params
        if self._folder is not None and self._best is not None:
            return model_folder.read_weights(self._folder.path, self._model.config)
        return self._export(step, carry, {})

    def last_good(self) -> str:
        """Returns what to say of where a run that broke could go on."""
        if self._folder is None or self.saved_at is None:
            return "there is no checkpoint"
        path = self._folder.checkpoints.path(self.saved_at)
        return f"the last good checkpoint is {path}"

    def _export(self, step: int, carry: Carry, metadata: dict[str, str]) -> Params:
        """Takes the parameters as they are for what the run has come to."""
        # Copies, since the step takes the originals.
        params: Params = processes.fetched(carry.judged)
        self._best_params = params
        if self._folder is not None and self._writes:
            self._folder.write_weights(params, {"step": str(step), **metadata})
        return params

    @staticmethod
    def _best_saved(folder: RunFolder) -> list[int]:
        """Returns the step of the best checkpoint there is, if any was evaluated."""
        checkpoints = folder.checkpoints
        losses = [
            (checkpoints.about(step)["validation_loss"], step)
            for step in checkpoints.steps()
        ]
        known = [(loss, step) for loss, step in losses if loss is not None]
        return [min(known)[1]] if known else []
