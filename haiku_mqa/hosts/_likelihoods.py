"""How likely a model finds texts, many at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation._padding import bucket
from haiku_mqa.model import Model, Params

_LOGITS = 2**26  # that are held at once: 256 MiB of float32


class Scored(NamedTuple):
    """What a model thinks of how a text ends.

    Attributes:
      log_likelihood: Of the end, after what comes before it, in nats.
      is_greedy: Whether each of its tokens is the likeliest where it stands.
    """

    log_likelihood: float
    is_greedy: bool


def score(
    model: Model,
    params: Params,
    texts: Sequence[tuple[Sequence[int], int]],
    *,
    batch_size: int,
) -> Iterator[tuple[int, Scored]]:
    """Yields how likely the ends of texts are, in an order of its own.

    Texts of one size are read together, the longest first: where memory does not
    suffice, it is known at once.

    Args:
      model: The model.
      params: Its parameters.
      texts: Token ids, at least two and no more than the context holds; and how many
        of them are the end, at least one and not all.
      batch_size: How many texts are read at once, at most.

    Yields:
      Which text, and what the model thinks of it.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (ids, end) in enumerate(texts):
        alike.setdefault((bucket(len(ids) - 1), bucket(end)), []).append(i)
    for (length, places), same in sorted(alike.items(), reverse=True):
        most = max(1, _LOGITS // (places * model.config.vocab_size))
        rows = min(batch_size, most)
        for begin in range(0, len(same), rows):
            chosen = same[begin : begin + rows]
            batch = _batch([texts[i] for i in chosen], rows, length, places)
            yield from zip(chosen, _scored(model, params, batch), strict=False)


class _Batch(NamedTuple):
    """Texts of one size; what is missing of one is masked.

    Attributes:
      tokens: int32 ``[B, T]``, all but the last.
      mask: bool ``[B, T]``, which are there.
      places: int32 ``[B, M]``, whose logits tell of the end's tokens.
      labels: int32 ``[B, M]``, those tokens; -1 where there is none.
    """

    tokens: Any  # arrays of NumPy, and of jax where they are read
    mask: Any
    places: Any
    labels: Any


def _batch(
    texts: Iterable[tuple[Sequence[int], int]], rows: int, length: int, places: int
) -> _Batch:
    batch = _Batch(
        np.zeros((rows, length), np.int32),
        np.zeros((rows, length), bool),
        np.zeros((rows, places), np.int32),
        np.full((rows, places), -1, np.int32),
    )
    for row, (ids, end) in enumerate(texts):
        size = len(ids) - 1
        batch.tokens[row, :size] = ids[:-1]
        batch.mask[row, :size] = True
        batch.places[row, :end] = np.arange(size - end, size)
        batch.labels[row, :end] = ids[-end:]
    return batch


def _scored(model: Model, params: Params, batch: _Batch) -> list[Scored]:
    log_likelihood, is_greedy = _program(model)(params, batch)
    return [
        Scored(float(x), bool(y))
        for x, y in zip(np.asarray(log_likelihood), np.asarray(is_greedy), strict=True)
    ]


@functools.lru_cache(maxsize=8)
def _program(model: Model) -> Callable[[Params, _Batch], tuple[jax.Array, jax.Array]]:
    @jax.jit
    def read(params: Params, batch: _Batch) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(
            params, None, batch.tokens, mask=batch.mask, logits_at=batch.places
        ).logits
        is_there = batch.labels >= 0
        labels = jnp.maximum(batch.labels, 0)[..., None]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)
        likeliest = logits.argmax(axis=-1) == batch.labels
        return (
            jnp.where(is_there, log_probs[..., 0], 0.0).sum(axis=1),
            jnp.where(is_there, likeliest, True).all(axis=1),
        )

    return read
