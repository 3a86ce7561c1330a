"""Batches made ahead of time by grain's threads, the same as those made when asked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from haiku_mqa._arguments import whole_number
from haiku_mqa.training.data import Batch, RandomWindows, check_rows

if TYPE_CHECKING:
    import grain

_STEPS = 2**63 - 1  # the most that a sequence of Python's can have
_AHEAD = 16  # batches


class GrainWindows(RandomWindows):
    """``RandomWindows`` read ahead by grain: the same batches, bit for bit.

    The batch of a step is a pure function of the seed and the step here too. So there
    is no iterator whose state would have to be saved: a run that stopped after step n
    goes on by ``iterate(n + 1)``. Tokens are not copied, so they can be a memory map
    from ``open_tokens`` that is larger than memory.

    Needs the extra ``grain``: ``pip install 'haiku-mqa[grain]'``.

    Example:
      >>> windows = GrainWindows(range(100), seq_len=4, batch_size=2, seed=0)
      >>> batches = windows.iterate(first_step=7, num_threads=1)
      >>> bool((next(batches).tokens == windows.batch(7).tokens).all())
      True
      >>> bool((next(batches).tokens == windows.batch(8).tokens).all())
      True
      >>> batches.close()
    """

    def __init__(self, tokens: Any, seq_len: int, batch_size: int, seed: int):
        """Checks all that ``batch`` needs.

        Args:
          tokens: Whole numbers, ``[num_tokens]``.
          seq_len: T, in tokens.
          batch_size: B, rows over all processes.
          seed: From 0 to 2**64 - 1.

        Raises:
          ImportError: Grain is not installed.
        """
        import_grain("GrainWindows")
        super().__init__(tokens, seq_len, batch_size, seed)

    def dataset(self, rows: slice | None = None) -> grain.MapDataset[Batch]:
        """Returns all batches as grain's dataset, whose element n is that of step n.

        Args:
          rows: Which of the B rows to make; all if ``None``.

        Returns:
          A dataset of random access, which has no end that a run could reach.

        Raises:
          ValueError: The rows are out of range.
        """
        check_rows(rows, range(self.batch_size))
        return _dataset(functools.partial(self.batch, rows=rows), _STEPS)

    def iterate(
        self,
        first_step: int = 0,
        *,
        num_threads: int = 1,
        ahead: int = _AHEAD,
        rows: slice | None = None,
    ) -> Generator[Batch]:
        """Returns the batches from a step on, made ahead of time by threads.

        Args:
          first_step: From 0 to 2**63 - 2; after n steps that were done, it is n.
          num_threads: How many threads make batches; with 0 each is made when it is
            asked for.
          ahead: How many batches are made before they are asked for, at least as many
            as there are threads.
          rows: Which of the B rows to make; all if ``None``.

        Returns:
          A generator without an end. Its threads end when it is closed or forgotten.

        Raises:
          ValueError: An argument is out of range.
        """
        first_step = whole_number("first_step", first_step, 0, _STEPS - 1)
        num_threads = whole_number("num_threads", num_threads, 0)
        ahead = whole_number("ahead", ahead)
        # Checked here and now, and not when the first batch is asked for.
        check_rows(rows, range(self.batch_size))
        make = functools.partial(self.batch, rows=rows)
        return batches_ahead(make, first_step, num_threads=num_threads, ahead=ahead)


def batches_ahead(
    make: Callable[[int], Batch],
    first_step: int,
    end: int = _STEPS,
    *,
    num_threads: int = 1,
    ahead: int = _AHEAD,
) -> Generator[Batch]:
    """Returns the batches of steps, made ahead of time by grain's threads.

    Args:
      make: A step to its batch, always the same one; called by the threads.
      first_step: The first batch's.
      end: The step after the last batch's.
      num_threads: How many threads make batches; with 0 each is made when it is asked
        for.
      ahead: How many batches are made before they are asked for.

    Returns:
      A generator. Its threads end when it is closed or forgotten.

    Raises:
      ImportError: Grain is not installed.

    Example:
      >>> windows = RandomWindows(range(100), seq_len=4, batch_size=2, seed=0)
      >>> [batch.tokens.shape for batch in batches_ahead(windows.batch, 5, 7)]
      [(2, 4), (2, 4)]
    """
    options = import_grain("batches_ahead").ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(ahead, num_threads)
    )
    # Batches are a function of the step, so there is no place in a stream to save.
    return _until_closed(_dataset(make, end)[first_step:].to_iter_dataset(options))


def import_grain(user: str) -> ModuleType:
    """Returns grain.

    Args:
      user: What needs it, as the user knows it.

    Raises:
      ImportError: It is not installed; the message says what needs it, and how to
        install it.
    """
    try:
        import grain
    except ImportError:
        raise ImportError(
            f"{user} needs the extra 'grain': pip install 'haiku-mqa[grain]'"
        ) from None
    return grain


class _Steps:
    """The batches of all steps, as the sequence that grain reads."""

    def __init__(self, make: Callable[[int], Batch], end: int):
        self._make, self._end = make, end

    def __len__(self) -> int:
        return self._end

    def __getitem__(self, step: int) -> Batch:
        return self._make(int(step))


def _dataset(make: Callable[[int], Batch], end: int) -> grain.MapDataset[Batch]:
    return import_grain("batches_ahead").MapDataset.source(_Steps(make, end))


def _until_closed(batches: grain.IterDataset[Batch]) -> Generator[Batch]:
    with contextlib.closing(iter(batches)) as iterator:
        yield from iterator
