"""What a run writes of itself: numbers, texts and a picture."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, TextIO

from haiku_mqa._files import write_whole
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.events import (
    Evaluated,
    Event,
    Sampled,
    Started,
    Stepped,
)

METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
PICTURE = "loss.png"
TENSORBOARD = "tensorboard"

_BETWEEN_PICTURES = 5.0  # seconds; a picture takes about half of one
# It tells how long the text is, in which there may be anything.
_HEAD = re.compile(r"=== step (\d+), (\d+) characters? ===\n")


class Reports:
    """Writes what a run says into its folder.

    ``metrics.jsonl`` has a JSON object in each line: of every ``log_every`` steps and
    the last one ``step``, ``loss`` (nats per token), ``grad_norm``,
    ``learning_rate``, ``tokens``, ``skipped`` and ``seconds`` (of the run, those
    before it was stopped included); of every evaluation ``step``,
    ``validation_loss`` and ``is_best``. A number that is not finite is ``null``.
    ``samples.txt`` has the texts, and ``loss.png`` the losses so far.

    Example:
      >>> import tempfile
      >>> from haiku_mqa.training.run.recipes import load_run_config
      >>> folder = Path(tempfile.mkdtemp())
      >>> reports = Reports(folder, load_run_config("default"))
      >>> reports.resume_at(0)
      >>> reports(Evaluated(100, 2.5, is_best=True))
      >>> reports.close()
      >>> print((folder / "metrics.jsonl").read_text().strip())
      {"step": 100, "validation_loss": 2.5, "is_best": true}
      >>> (folder / "loss.png").exists()
      True
    """

    def __init__(self, folder: Path, config: RunConfig):
        """Writes nothing yet.

        Args:
          folder: The run's, which is there.
          config: Of the run.
        """
        self._folder, self._config = folder, config
        self._metrics: TextIO | None = None
        self._train: list[tuple[int, float]] = []
        self._validation: list[tuple[int, float]] = []
        self._start = time.perf_counter()
        self._drawn: float | None = None  # when
        self._is_drawn = True  # whether the picture has all there is

    def resume_at(self, step: int) -> None:
        """Drops what was written of later steps, and goes on from there.

        Args:
          step: How many steps are done.

        Raises:
          OSError: A file could not be written.
        """
        lines = _lines_until(self._folder / METRICS, step)
        seconds = 0.0
        for line in lines:
            self._remember(line)
            seconds = line.get("seconds", seconds)
        self._start = time.perf_counter() - seconds
        _rewrite(self._folder / METRICS, "".join(map(_as_line, lines)))
        samples = self._folder / SAMPLES
        if samples.exists():
            _rewrite(samples, _samples_until(_read(samples), step))
        self._metrics = _open(self._folder / METRICS)
        # A finished run stays as it is, unless it was killed before its last picture.
        is_whole = _is_newer(self._folder / PICTURE, self._folder / METRICS)
        self._is_drawn = is_whole or not lines

    def __call__(self, event: Event) -> None:
        """Writes what is to be written of an event.

        Args:
          event: What happened.

        Raises:
          OSError: A file could not be written, for example because the disk is full.
        """
        config = self._config
        if isinstance(event, Stepped):
            is_last = event.step == config.optimizer.total_steps
            if is_last or event.step % config.log_every == 0:
                self._write(self._line_of(event))
            if is_last or event.step % config.checkpoint_every == 0:
                self._sync()
        elif isinstance(event, Evaluated):
            self._write(
                {
                    "step": event.step,
                    "validation_loss": _finite(event.validation_loss),
                    "is_best": event.is_best,
                }
            )
            self._sync()
            now = time.perf_counter()
            if self._drawn is None or now - self._drawn > _BETWEEN_PICTURES:
                self._draw()
        elif isinstance(event, Sampled):
            with _named(self._folder / SAMPLES), _open(self._folder / SAMPLES) as file:
                file.write(_as_sample(event))
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Draws the last picture, if there is more to draw, and closes the files."""
        if self._metrics is not None:
            self._metrics.close()
        if not self._is_drawn:
            self._draw()

    def _line_of(self, event: Stepped) -> dict[str, Any]:
        metrics = event.metrics
        return {
            "step": event.step,
            "loss": _finite(metrics.loss),
            "grad_norm": _finite(metrics.grad_norm),
            "learning_rate": metrics.learning_rate,
            "tokens": metrics.tokens,
            "skipped": metrics.skipped,
            "seconds": round(time.perf_counter() - self._start, 3),
        }

    def _write(self, line: dict[str, Any]) -> None:
        if self._metrics is None:
            raise RuntimeError("resume_at must come before the first event")
        self._remember(line)
        with _named(self._folder / METRICS):
            self._metrics.write(_as_line(line))
            self._metrics.flush()

    def _sync(self) -> None:
        # A checkpoint comes next, and must not outlive what was said before it.
        if self._metrics is not None:
            with _named(self._folder / METRICS):
                os.fsync(self._metrics.fileno())

    def _remember(self, line: dict[str, Any]) -> None:
        for name, points in (
            ("loss", self._train),
            ("validation_loss", self._validation),
        ):
            if line.get(name) is not None:
                points.append((line["step"], line[name]))
                self._is_drawn = False

    def _draw(self) -> None:
        # Takes a moment, for which those without a folder need not wait.
        from haiku_mqa.training.run.plot_loss import plot_loss

        title = self._folder.absolute().name
        # It is not worth a run: the same disk says what is wrong at a checkpoint.
        with contextlib.suppress(OSError):
            plot_loss(self._folder / PICTURE, title, self._train, self._validation)
        self._drawn, self._is_drawn = time.perf_counter(), True


class TensorBoard:
    """Writes what a run says where TensorBoard reads it; an observer of ``train``.

    It needs the extra ``tensorboard``. Steps that are run again, after a stop, take
    the place of those before.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 10):
        """Writes nothing yet.

        Args:
          folder: The run's; the files are in ``tensorboard`` in it.
          every: Steps between losses, as a run's ``log_every``.

        Raises:
          ImportError: The extra is not installed.
        """
        import tensorboardX

        self._make: Any = tensorboardX.SummaryWriter
        self._folder, self._every = Path(folder), every
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Writes what is to be written of an event.

        Args:
          event: What happened.
        """
        if isinstance(event, Started):
            if event.first_step < event.total_steps:
                place = str(self._folder / TENSORBOARD)
                self._writer = self._make(place, purge_step=event.first_step + 1)
        elif self._writer is None:
            return
        elif isinstance(event, Stepped) and event.step % self._every == 0:
            for name in ("loss", "grad_norm", "learning_rate"):
                self._add(name, getattr(event.metrics, name), event.step)
            self._add("tokens_per_second", event.tokens_per_second, event.step)
        elif isinstance(event, Evaluated):
            self._add("validation_loss", event.validation_loss, event.step)
            self._writer.flush()
        elif isinstance(event, Sampled):
            # Markdown shows what is indented as it is.
            text = "\n".join(f"    {line}" for line in event.text.split("\n"))
            self._writer.add_text("sample", text, event.step)

    def close(self) -> None:
        """Writes what waits."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)


# --- Lines and samples ----------------------------------------------------------------


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's ``metrics.jsonl``; none where there is no such file.

    Args:
      folder: The run's.
    """
    return _lines_until(folder / METRICS, None)


def _lines_until(path: Path, step: int | None) -> list[dict[str, Any]]:
    """Returns the whole lines of the steps until one; what a kill cut off is none."""
    lines = []
    for text in _read(path).split("\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return [line for line in lines if step is None or line["step"] <= step]


def _samples_until(text: str, step: int) -> str:
    place = 0
    while match := _HEAD.match(text, place):
        end = match.end() + int(match[2]) + len("\n\n")
        if int(match[1]) > step or end > len(text):
            break
        place = end
    return text[:place]


def _as_line(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _as_sample(event: Sampled) -> str:
    count = len(event.text)
    what = "character" if count == 1 else "characters"
    return f"=== step {event.step}, {count} {what} ===\n{event.text}\n\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- Files ----------------------------------------------------------------------------


def _open(path: Path) -> TextIO:
    # newline: a text's line ends are counted and stay as they are.
    return open(path, "a", encoding="utf-8", newline="")


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _is_newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _rewrite(path: Path, text: str) -> None:
    data = text.encode()
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)


@contextlib.contextmanager
def _named(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        told = f"{path} could not be written: {error.strerror}"
        raise OSError(error.errno, told) from error
