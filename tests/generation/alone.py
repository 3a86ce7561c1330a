"""A tiny model, and what ``generate`` gives each of many requests for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from haiku_mqa import Model, Sampling, generate
from haiku_mqa.model import Params
from tests.models import EXAMPLES, drawn_params

# One layer, with a window and caps: two would take twice as long to compile.
MODEL = Model(dataclasses.replace(EXAMPLES["capped"], num_layers=1, sliding_window=3))
PARAMS = drawn_params(MODEL)
LONGEST, MOST = 20, 30  # of a prompt and of a continuation, in tokens
GREEDY = Sampling(temperature=0.0)

_ROWS = 32
# Has every dial on, so that all batches are of one shape and make one program.
_FILLER = Sampling(
    top_k=20,
    top_p=0.9,
    min_p=0.01,
    typical_p=0.9,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={1: 0.1, 2: 0.1},
)

Asked = tuple[tuple[int, ...], Sampling, int]  # a prompt, how, and a seed


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked of an engine."""

    prompt: tuple[int, ...]
    new: int
    sampling: Sampling = GREEDY
    seed: int = 0
    end: int | None = None

    def submit(self, engine):
        """Returns the request."""
        return engine.submit(
            self.prompt,
            max_new_tokens=self.new,
            sampling=self.sampling,
            seed=self.seed,
            end_tokens=() if self.end is None else (self.end,),
        )


def alone(wishes: Sequence[Wish]) -> list[list[int]]:
    """Returns the tokens that each gets, whoever sits beside it."""
    found = []
    for wish in wishes:
        free = _free(tuple((w.prompt, w.sampling, w.seed) for w in wishes))
        tokens = free[wish.prompt, wish.sampling, wish.seed][: wish.new]
        found.append(tokens[: tokens.index(wish.end)] if wish.end in tokens else tokens)
    return found


@functools.cache
def _free(asked: tuple[Asked, ...]) -> dict[Asked, list[int]]:
    """Returns ``MOST`` tokens for each: one more does not change those before."""
    return together(MODEL, PARAMS, asked, longest=LONGEST, most=MOST)


def together(
    model: Model, params: Params, asked: Sequence[Asked], *, longest: int, most: int
) -> dict[Asked, list[int]]:
    """Returns what ``generate`` gives each, by one program whatever is asked.

    Args:
      model: The model.
      params: Its parameters.
      asked: Prompts, how tokens are chosen, and seeds.
      longest: Of all prompts, in tokens.
      most: How many tokens each gets.
    """
    found, different = {}, list(dict.fromkeys(asked))
    for start in range(0, len(different), _ROWS - 1):
        rows = different[start : start + _ROWS - 1]
        rows += [((0,) * longest, _FILLER, 0)] * (_ROWS - len(rows))
        seeds = np.array([seed for _, _, seed in rows], np.uint32)
        result = generate(
            model,
            params,
            [prompt for prompt, _, _ in rows],
            max_new_tokens=most,
            sampling=[sampling for _, sampling, _ in rows],
            rng=jax.vmap(jax.random.key)(seeds),
        )
        found |= dict(zip(rows, result.tokens, strict=True))
    return found
