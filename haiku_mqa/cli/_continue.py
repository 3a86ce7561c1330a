"""How a text goes on beyond the context of its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from haiku_mqa.generation import Prefix, Sampling, Step
    from haiku_mqa.model import Model, Params


def steps(
    model: Model,
    params: Params,
    ids: Sequence[int],
    *,
    new_tokens: int,
    sampling: Sampling,
    rng: jax.Array | None,
    end_tokens: Sequence[int] = (),
    logprobs: bool = False,
    prefix: Prefix | None = None,
    cache_dtype: str | None = None,
    ring_cache: bool = False,
    chunk: int = 1,
) -> Iterator[Step]:
    """Yields new tokens; where the context is full, goes on from its second half.

    Args:
      model: The model.
      params: Its parameters.
      ids: The tokens that are there already, one at least where there is no prefix.
      new_tokens: How many come at most.
      sampling: How they are chosen.
      rng: PRNG key; ``None`` where the choice is greedy.
      end_tokens: The text ends where one of these is chosen.
      logprobs: Whether steps have log-probabilities.
      prefix: What comes before ``ids``, and was read.
      cache_dtype: As ``stream``.
      ring_cache: As ``stream``.
      chunk: How many tokens come at a time.

    Yields:
      What one row got.

    Raises:
      ValueError: An id is out of range.
      FloatingPointError: The model's logits were NaN.
    """
    import jax

    from haiku_mqa.generation import stream

    ids, context = list(ids), model.config.max_length
    while new_tokens:
        before = prefix.tokens if prefix else ()
        if len(before) + len(ids) >= context:
            ids = [*before, *ids][-max(1, context // 2) :]
            prefix, before = None, ()
        room = min(new_tokens, context - len(before) - len(ids))
        told = 0
        for step in stream(
            model,
            params,
            [ids],
            max_new_tokens=room,
            sampling=sampling,
            rng=rng,
            end_tokens=tuple(end_tokens),
            logprobs=logprobs,
            prefix=prefix,
            cache_dtype=cache_dtype,
            ring_cache=ring_cache,
            chunk=chunk,
        ):
            told += len(step.tokens[0])
            ids = ids + step.tokens[0]
            yield step
        if told < room:
            return  # an end token came
        new_tokens -= room
        rng = None if rng is None else jax.random.fold_in(rng, new_tokens)
