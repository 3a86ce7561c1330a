"""What the laws share: how errors are measured, and how cases are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from haiku_mqa.cache import KVCache
from haiku_mqa.testing.subject import LENGTH, Subject

INF = float("inf")
CLOSE = 1e-5
COARSE = 0.25  # of logits, where the cache is in int8
SIZES = (1, 2, 5)  # lengths of whole chunks: three programs serve every way of cutting

seeds = st.integers(0, 2**31 - 1)
places = st.integers(0, LENGTH - 1)


def gap(a: Any, b: Any) -> float:
    """Returns the largest difference; NaN counts as infinite."""
    largest = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(
        initial=0
    )
    return float(largest) if np.isfinite(largest) else INF


def only(strategy: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Returns cases that do not depend on what is tested."""
    return lambda subject: strategy


def fill(sizes: Sequence[int]) -> list[int]:
    """Takes sizes until the length is reached; the rest of it one by one."""
    taken: list[int] = []
    for size in sizes:
        if sum(taken) + size <= LENGTH:
            taken.append(size)
    return taken + [1] * (LENGTH - sum(taken))


cuts = st.lists(st.sampled_from(SIZES), min_size=LENGTH, max_size=LENGTH).map(fill)


def is_ours(subject: Subject) -> bool:
    """Whether the parameters are under this package's paths."""
    return subject.is_ours


def has_our_cache(subject: Subject) -> bool:
    """Whether the cache is a ``KVCache``."""
    return isinstance(subject.empty_cache(), KVCache)


def can_roll_back(subject: Subject) -> bool:
    """Whether the cache is a ``KVCache`` that keeps all tokens."""
    cache = subject.empty_cache()
    return isinstance(cache, KVCache) and not cache.windows


def has_relative_positions(subject: Subject) -> bool:
    """Whether the config says that only distances matter."""
    config = subject.config
    return config is not None and config.position_embedding != "learned"
