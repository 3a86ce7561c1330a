"""How fast a run goes, and the bar that shows how far it is."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.events import (
    Evaluated,
    Event,
    Observer,
    Started,
    Stepped,
)

_STEPS_TIMED = 20


class Speed:
    """How fast labels are counted, over the last few steps."""

    def __init__(self) -> None:
        self._steps: collections.deque[tuple[int, float]] = collections.deque(
            maxlen=_STEPS_TIMED
        )
        self._mark = time.perf_counter()
        self._is_first = True

    def pause(self) -> None:
        """Leaves out the time since the last step."""
        self._mark = time.perf_counter()

    def after(self, tokens: int) -> float:
        """Returns labels per second, with one more step.

        Args:
          tokens: How many labels it had.
        """
        if self._is_first and self._steps:
            # The first one took as long as its compilation.
            self._steps.clear()
            self._is_first = False
        now = time.perf_counter()
        self._steps.append((tokens, now - self._mark))
        self._mark = now
        counted, seconds = map(sum, zip(*self._steps, strict=True))
        return counted / max(seconds, 1e-9)


@contextlib.contextmanager
def bar(config: RunConfig) -> Iterator[Observer]:
    """Shows a bar, if this is a terminal, that what is yielded moves on.

    Args:
      config: Of the run.

    Yields:
      What is to be called with the run's events.
    """
    from tqdm import tqdm

    with tqdm(total=config.optimizer.total_steps, unit="step", disable=None) as shown:
        told: dict[str, Any] = {}

        def show(event: Event) -> None:
            if isinstance(event, Started):
                shown.update(event.first_step)
            elif isinstance(event, Stepped):
                told["loss"] = f"{event.metrics.loss:.3f}"
                shown.set_postfix(told, refresh=False)
                shown.update()
            elif isinstance(event, Evaluated):
                told["validation"] = f"{event.validation_loss:.3f}"

        yield show
