"""Kills a run again and again, and looks whether it is the run never killed.

By hand, from the repository's root: ``python -m tests.training.run.kill_table 200``.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.training.run.runs import Child, metrics_of, until

STEPS, EVERY = 24, 4
SLOW = 0.004  # seconds, for each thing that a save does to the disk
PACE = 0.004  # seconds, for each step
LONGEST = 1.2  # seconds from the beginning of a run to a kill at a random moment
SAVE = 0.2  # seconds that a save takes, about


@dataclasses.dataclass
class Tally:
    """What came of killing.

    Attributes:
      kills: How many there were.
      in_saves: How many of them left a checkpoint half written.
      resumed: How many of them were followed by a run that went on from a checkpoint.
      again: How many steps were run again after one.
      finished: How many runs were killed until they came to their end.
      losses: How many losses were compared, those of steps run again included.
      mismatches: How many of them were not the same, bit for bit.
      lost: How many checkpoints that had been announced were not gone on from.
      unequal: How many finished runs had another ``metrics.jsonl``, times apart.
      seconds: How long it took.
    """

    kills: int = 0
    in_saves: int = 0
    resumed: int = 0
    again: int = 0
    finished: int = 0
    losses: int = 0
    mismatches: int = 0
    lost: int = 0
    unequal: int = 0
    seconds: float = 0.0

    def rows(self) -> str:
        names = {
            "kills": f"{self.kills}",
            "kills during a save": f"{self.in_saves}",
            "went on from a checkpoint": f"{self.resumed}",
            "steps run again": f"{self.again}",
            "runs brought to their end": f"{self.finished}",
            "losses compared": f"{self.losses}",
            "mismatching losses (bitwise)": f"{self.mismatches}",
            "announced checkpoints lost": f"{self.lost}",
            "unequal metrics.jsonl": f"{self.unequal}",
            "seconds": f"{self.seconds:.0f}",
        }
        return "\n".join(f"{name:30}{value:>8}" for name, value in names.items())


class Killer:
    """Kills runs in a folder, each in a process of its own."""

    def __init__(self, folder: Path, cache: Path, seed: int):
        self.folder, self.cache = folder, cache
        self.draw, self.tally = random.Random(seed), Tally()
        self.run, self.log = folder / "run", folder / "losses"
        self._child(self.folder / "whole", self.folder / "expected", slow=0).end()
        self.expected = dict(self._losses(self.folder / "expected"))
        self.metrics = metrics_of(self.folder / "whole")

    def kill(self, times: int) -> Tally:
        """Kills that many runs, and brings the last of them to its end."""
        begun, last, reached = time.monotonic(), 0, 0
        while self.tally.kills < times or reached:
            before = self._half_written()
            child = self._child(self.run, self.log, slow=SLOW)
            struck = self.tally.kills < times and self._strike(child)
            code = child.end()
            for first in _numbers(child, "from"):
                self.tally.lost += first != last
                self.tally.resumed += first > 0
                self.tally.again += max(0, reached - first)
            reached = max([reached, *_numbers(child, "step")])
            if struck and code:
                self.tally.kills += 1
                self.tally.in_saves += bool(self._half_written() - before)
                last = max([last, *_numbers(child, "saved"), *self._in_place()])
            elif code:
                raise RuntimeError(f"a run failed by itself:\n{child.errors}")
            else:
                self._compare_whole()
                last = reached = 0
            self.tally.seconds = time.monotonic() - begun
        return self.tally

    def _strike(self, child: Child) -> bool:
        """Kills at a random moment, or at one within a save; returns whether it did."""
        if not child.wait_for("ready"):
            return False
        if self.draw.random() < 0.5:
            time.sleep(self.draw.uniform(0, LONGEST))
        else:
            nth = self.draw.randint(1, 2)  # evaluations come right before saves
            until(
                lambda: (
                    len(_numbers(child, "evaluated")) >= nth
                    or child.lines[-1] == "(end)"
                )
            )
            time.sleep(self.draw.uniform(0, SAVE))
        child.process.kill()
        return True

    def _compare_whole(self) -> None:
        self.tally.finished += 1
        for step, loss in self._losses(self.log):
            self.tally.losses += 1
            self.tally.mismatches += loss != self.expected[step]
        self.tally.unequal += metrics_of(self.run) != self.metrics
        shutil.rmtree(self.run)
        self.log.unlink()

    def _child(self, folder: Path, log: Path, slow: float) -> Child:
        pace = PACE if slow else 0.0
        return Child(
            folder, self.cache, STEPS, slow=slow, log=log, every=EVERY, pace=pace
        )

    def _losses(self, log: Path) -> list[tuple[int, str]]:
        words = (line.split() for line in log.read_text().splitlines())
        return [(int(step), loss) for step, loss in words]

    def _in_place(self) -> list[int]:
        names = (path.name for path in self.run.glob("checkpoints/*"))
        return [int(name) for name in names if name.isdecimal()]

    def _half_written(self) -> set[str]:
        return {path.name for path in self.run.glob("checkpoints/*.saving-*")}


def _numbers(child: Child, word: str) -> list[int]:
    """Returns the steps that a child said a word of."""
    lines = (line.split() for line in child.lines)
    return [int(words[1]) for words in lines if words[0] == word]


def main(times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder), Path(folder, "cache"), seed=0)
        print(killer.kill(times).rows())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
