"""Programs that take turns, because a machine is not equally fast all day."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from haiku_mqa.bench.scale import progress_bar


class Named(Protocol):
    """Whatever has a name to be shown while it runs."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


P = TypeVar("P", bound=Named)
W = TypeVar("W")
R = TypeVar("R")
M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Turns(Generic[R, M]):
    """What came of programs that took turns.

    Attributes:
      first: Of each workload, what each program's first run returned. It compiles and
        brings weights near, and is for no clock.
      runs: Of each workload and program, what each run after it returned.
      measured: Of the machine, once a repeat.
    """

    first: list[list[R]]
    runs: list[list[list[R]]]
    measured: list[M]


def take_turns(
    programs: Sequence[P],
    workloads: Sequence[W],
    run: Callable[[P, W], R],
    *,
    repeats: int,
    measure: Callable[[], M],
    progress: bool = False,
) -> Turns[R, M]:
    """Runs every program with every workload in turn, as often as asked.

    Args:
      programs: What to run.
      workloads: What to run them with.
      run: Runs one with the other.
      repeats: How often, >= 1, after a first time that is told apart.
      measure: Called once a repeat, before its runs: a limit of the machine is
        measured in the same minutes as what it limits.
      progress: Whether a bar is shown on stderr.

    Returns:
      What came of it.

    Example:
      >>> class Echo:
      ...     name = "echo"
      >>> turns = take_turns([Echo()], [2, 3], lambda _, size: size ** 2,
      ...     repeats=2, measure=lambda: "quiet")
      >>> turns.first, turns.runs, turns.measured
      ([[4], [9]], [[[4, 4]], [[9, 9]]], ['quiet', 'quiet'])
    """
    first: list[list[R]] = [[] for _ in workloads]
    runs: list[list[list[R]]] = [[[] for _ in programs] for _ in workloads]
    measured: list[M] = []
    total = (1 + repeats) * len(programs) * len(workloads)
    with progress_bar(total, "run", is_shown=progress) as bar:

        def turn(program: P, workload: W) -> R:
            bar.set_description(program.name)
            result = run(program, workload)
            bar.update()
            return result

        for workload, own in zip(workloads, first, strict=True):
            own += [turn(program, workload) for program in programs]
        for _ in range(repeats):
            measured.append(measure())
            for workload, by_program in zip(workloads, runs, strict=True):
                for program, own in zip(programs, by_program, strict=True):
                    own.append(turn(program, workload))
    return Turns(first, runs, measured)
