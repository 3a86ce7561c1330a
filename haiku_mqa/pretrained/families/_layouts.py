"""How the numbers of a foreign tensor lie, each way told once for both directions.

Whatever a family's tensors look like, ours are matrices ``[in, out]``, tables and
vectors. Here both are seen *by rows*, the outputs of a layer first: a layout pairs
views of a foreign tensor with views of our parameters. To read is to copy the first
of each pair into the second, to write is to copy back, so that one is the other's
inverse by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from haiku_mqa.config import DecoderConfig

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]
Layout = Callable[[DecoderConfig, np.ndarray, Sequence[np.ndarray]], Pairs]
"""A config, a foreign tensor and our parameters by rows, to pairs of their views."""


def stacked(
    config: DecoderConfig, foreign: np.ndarray, ours: Sequence[np.ndarray]
) -> Pairs:
    """Yields one parameter after the other with the foreign rows, in their order.

    Args:
      config: Of the decoder.
      foreign: ``[a + b + ..., ...]``.
      ours: ``[a, ...]``, ``[b, ...]``, and so on; a single one has all rows.

    Yields:
      Pairs of views.
    """
    start = 0
    for rows in ours:
        yield foreign[start : start + len(rows)], rows
        start += len(rows)


def by_groups(
    config: DecoderConfig, foreign: np.ndarray, ours: Sequence[np.ndarray]
) -> Pairs:
    """Yields heads that lie by groups: G of queries, one of keys, one of values.

    With one group that is multi-query attention; with as many groups as heads, each
    query head has its own key and value beside it.

    Args:
      config: Of the decoder.
      foreign: ``[K * (G + 2) * H, ...]``.
      ours: Queries ``[N * H, ...]``, keys and values ``[K * H, ...]``.

    Yields:
      Pairs of views.
    """
    heads = _split(foreign, config.num_kv_heads, -1, config.key_size)
    for part, rows in zip(
        (slice(-2), slice(-2, -1), slice(-1, None)), ours, strict=True
    ):
        yield heads[:, part], _split(rows, config.num_kv_heads, -1, config.key_size)


def interleaved(
    config: DecoderConfig, foreign: np.ndarray, ours: Sequence[np.ndarray]
) -> Pairs:
    """Yields heads whose rotary pairs are neighbours there, and half a head off here.

    Args:
      config: Of the decoder, which turns the R leading numbers of a head.
      foreign: ``[N * H, ...]``, or ``[K * H, ...]`` for keys.
      ours: The same, alone.

    Yields:
      Pairs of views.
    """
    (rows,) = ours
    turned = config.rotary_size
    theirs = _split(foreign, -1, config.key_size)
    heads = _split(rows, -1, config.key_size)
    neighbours = _split(theirs[:, :turned].swapaxes(0, 1), turned // 2, 2)
    halves = _split(heads[:, :turned].swapaxes(0, 1), 2, turned // 2)
    yield neighbours, halves.swapaxes(0, 1)
    yield theirs[:, turned:], heads[:, turned:]


def interleaved_by_head(
    config: DecoderConfig, foreign: np.ndarray, ours: Sequence[np.ndarray]
) -> Pairs:
    """Yields what is interleaved and has an axis for heads, as their norms' scales.

    Args:
      config: Of the decoder.
      foreign: ``[N, H]``, or ``[K, H]`` for keys.
      ours: The same, alone.

    Yields:
      Pairs of views.
    """
    (rows,) = ours
    yield from interleaved(config, foreign.reshape(-1), [rows.reshape(-1)])


def _split(array: np.ndarray, *sizes: int) -> np.ndarray:
    """Returns a view whose first axis is cut into several."""
    return array.reshape(*sizes, *array.shape[1:])
