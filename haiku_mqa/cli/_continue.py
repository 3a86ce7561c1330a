"""How a text goes on beyond the context of its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from haiku_mqa.generation import Sampling
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
    chunk: int = 1,
) -> Iterator[list[int]]:
    """Yields new tokens; where the context is full, goes on from its second half.

    Args:
      model: The model.
      params: Its parameters.
      ids: The tokens that are there already, one at least.
      new_tokens: How many come at most.
      sampling: How they are chosen.
      rng: PRNG key; ``None`` where the choice is greedy.
      end_tokens: The text ends where one of these is chosen.
      chunk: How many tokens come at a time.

    Yields:
      The next tokens.

    Raises:
      ValueError: An id is out of range.
      FloatingPointError: The model's logits were NaN.
    """
    import jax

    from haiku_mqa.generation import stream

    ids, context = list(ids), model.config.max_length
    while new_tokens:
        ids = ids if len(ids) < context else ids[-max(1, context // 2) :]
        room = min(new_tokens, context - len(ids))
        told = 0
        for [tokens] in stream(
            model,
            params,
            [ids],
            max_new_tokens=room,
            sampling=sampling,
            rng=rng,
            end_tokens=tuple(end_tokens),
            chunk=chunk,
        ):
            told += len(tokens)
            ids = ids + tokens
            yield tokens
        if told < room:
            return  # an end token came
        new_tokens -= room
        rng = None if rng is None else jax.random.fold_in(rng, new_tokens)
