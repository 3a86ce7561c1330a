"""What a law is, how one is put to the test, and the table that comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from haiku_mqa.errors import unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """A property that must hold for every drawn case.

    Attributes:
      name: In a few words.
      statement: In one sentence.
      tolerance: The largest error that keeps the law; 0 is bitwise.
      cases: From what is tested to a strategy of cases.
      error: From what is tested and a case to the error, ``inf`` where the law is
        broken in a way that has no size.
      applies: Whether the law speaks of what is tested.
      most: No more examples than this, where each is slow.
      coarse: The largest error that keeps the law where the cache is in int8;
        ``tolerance`` if ``None``.
    """

    name: str
    statement: str
    tolerance: float
    cases: Callable[[Any], SearchStrategy[Any]]
    error: Callable[[Any, Any], float]
    applies: Callable[[Any], bool] = lambda subject: True
    most: int = 1_000_000
    coarse: float | None = None

    def allowed(self, subject: Any) -> float:
        """Returns the largest error that a subject may show."""
        rounds = self.coarse is not None and getattr(subject, "is_coarse", False)
        return self.coarse if rounds and self.coarse is not None else self.tolerance


@dataclasses.dataclass(frozen=True)
class LawResult:
    """How a law fared.

    Attributes:
      law: Its name.
      examples: How many cases were tried.
      worst_error: The largest error seen.
      tolerance: The largest allowed.
      passed: Whether it held for all.
      message: What broke it, and for which case; empty where it held.
    """

    law: str
    examples: int
    worst_error: float
    tolerance: float
    passed: bool
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """How a subject fared under all the laws that speak of it.

    Attributes:
      subject: What was tested.
      laws: A result for each law.
    """

    subject: str
    laws: tuple[LawResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every law held."""
        return all(result.passed for result in self.laws)

    @property
    def examples(self) -> int:
        """How many cases were tried in all."""
        return sum(result.examples for result in self.laws)

    def __str__(self) -> str:
        """Returns the table: law, examples, worst error, verdict."""
        width = max([len(result.law) for result in self.laws] + [len("law")])
        head = f"{'law':<{width}}  examples  worst error  allowed  verdict"
        rows = [
            f"{r.law:<{width}}  {r.examples:>8}  {r.worst_error:>11.1e}  "
            f"{r.tolerance:>7.0e}  {'holds' if r.passed else 'BROKEN'}"
            for r in self.laws
        ]
        faults = [f"{r.law}: {r.message}" for r in self.laws if not r.passed]
        return "\n".join([head, *rows, *faults])


class LawBroken(AssertionError):
    """Raised inside a property where its error is too large."""


def try_law(law: Law, subject: Any, examples: int, *, seed: int = 0) -> LawResult:
    """Puts a law to the test.

    Args:
      law: The law.
      subject: What is tested.
      examples: How many cases at most.
      seed: Other seeds draw other cases.

    Returns:
      The result; a broken law is a result, not an exception.
    """
    tried, worst = 0, 0.0
    allowed = law.allowed(subject)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=min(examples, law.most),
        deadline=None,  # the first example compiles
        database=None,
        print_blob=False,
        # No shrinking: most of a case is seeds, and a smaller seed explains nothing.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @hypothesis.given(law.cases(subject))
    def holds(case: Any) -> None:
        nonlocal tried, worst
        error = law.error(subject, case)
        tried, worst = tried + 1, max(worst, error)
        if not error <= allowed:  # NaN is no small error
            worst = max(worst, error) if error == error else float("nan")
            raise LawBroken(f"{law.statement} Error {error:.1e} for {case!r}.")

    try:
        holds()
    except Exception as error:  # a decoder may fail in any way
        kind = "" if isinstance(error, LawBroken) else f"{type(error).__name__}: "
        message = f"{kind}{error}".strip().splitlines()[0]
        return LawResult(law.name, tried, worst, allowed, False, message)
    return LawResult(law.name, tried, worst, allowed, True)


def named_laws(laws: Sequence[Law], names: Sequence[str] | None) -> Sequence[Law]:
    """Returns the laws of some names, in their own order.

    Args:
      laws: All that there are.
      names: Of those that are wanted; all if ``None``.

    Raises:
      ValueError: There is no name, or no law of a name.
    """
    if names is None:
        return laws
    if isinstance(names, str) or not names:  # letters are no names
        raise ValueError(f"laws must be a sequence of names, got {names!r}")
    known = [law.name for law in laws]
    for name in names:
        if name not in known:
            raise unknown_name("law", str(name), known)
    return [law for law in laws if law.name in names]


def check_applies(laws: Sequence[Law], subject: Any) -> None:
    """Refuses laws that do not speak of a subject: that they hold would say nothing.

    Args:
      laws: That were asked for.
      subject: What is tested.

    Raises:
      ValueError: There are such laws; names them.
    """
    idle = [law.name for law in laws if not law.applies(subject)]
    if idle:
        raise ValueError(
            f"laws must speak of this decoder, and {', '.join(idle)} do not"
        )


def try_laws(
    laws: Sequence[Law],
    subject: Any,
    name: str,
    *,
    examples: int,
    seed: int = 0,
    on_law: Callable[[LawResult], None] | None = None,
) -> Report:
    """Puts every law that speaks of a subject to the test.

    Args:
      laws: The laws.
      subject: What is tested.
      name: What to call it.
      examples: How many cases of each at most.
      seed: Other seeds draw other cases.
      on_law: Called with each result as it is known.

    Returns:
      The report.
    """
    results = []
    for law in laws:
        if not law.applies(subject):
            continue
        results.append(try_law(law, subject, examples, seed=seed))
        if on_law:
            on_law(results[-1])
    return Report(name, tuple(results))
