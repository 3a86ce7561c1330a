"""Small runs that tests share, in this process or in one that can be killed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import haiku_mqa
from haiku_mqa.training import Corpus, OptimizerConfig
from haiku_mqa.training.run.config import RunConfig
from haiku_mqa.training.run.data_config import DataConfig

REPOSITORY = Path(haiku_mqa.__file__).parents[1]
CORPUS = Corpus(("to be or not to be, that is the question. " * 20,), name="hamlet")
CONFIG = RunConfig(
    model={
        "num_layers": 1,
        "num_heads": 2,
        "d_model": 8,
        "d_ff": 16,
        "residual_dropout": 0.1,  # whose rng must go on where it stopped
    },
    data=DataConfig(seq_len=8, batch_size=4, eval_batch_size=16),
    optimizer=OptimizerConfig(warmup_steps=2, total_steps=12, learning_rate=1e-2),
    seed=3,
    average_decay=0.9,
    eval_every=4,
    checkpoint_every=4,
    log_every=1,
)
TIMES = ("seconds", "tokens_per_second", "time")  # fields of a line that may differ


def longer(steps: int, **changes) -> RunConfig:
    optimizer = dataclasses.replace(CONFIG.optimizer, total_steps=steps)
    return dataclasses.replace(CONFIG, optimizer=optimizer, **changes)


def metrics_of(folder) -> list[dict]:
    """Returns the lines of ``metrics.jsonl``, with floats by their bits, less times."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value.hex() if isinstance(value, float) else value
            for name, value in json.loads(line).items()
            if name not in TIMES
        }
        for line in lines
    ]


class Child:
    """A process that trains; its lines say what it is at, as they come.

    ``slow`` seconds are added to each thing that a save does to the disk, and ``pace``
    to each step; ``log`` gets the bits of each loss, even of steps that are run again.
    """

    def __init__(self, folder, cache, steps=12, slow=0.0, log=None, every=4, pace=0.0):
        arguments = dict(
            folder=str(folder),
            steps=steps,
            slow=slow,
            log=log and str(log),
            every=every,
            pace=pace,
        )
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.run.child", json.dumps(arguments)],
            cwd=REPOSITORY,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(
                target=lambda: self._errors.extend(self.process.stderr), daemon=True
            ),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.strip())
                self._changed.notify_all()
        with self._changed:
            self.lines.append("(end)")
            self._changed.notify_all()

    def wait_for(self, line: str, seconds: float = 120) -> bool:
        """Returns whether the child said a line, rather than ending without it."""
        with self._changed:
            self._changed.wait_for(
                lambda: line in self.lines or "(end)" in self.lines, seconds
            )
            return line in self.lines

    def kill(self):
        self.process.kill()
        self.end()

    def end(self, seconds: float = 120) -> int:
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    @property
    def errors(self) -> str:
        return "".join(self._errors)


def until(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
