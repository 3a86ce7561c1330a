"""The two compiled halves of generation: reading the prompt, and the decode loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa.cache import KVCache
from haiku_mqa.generation.sampling import Dials, choose
from haiku_mqa.model import Model, Params

CHUNK = 32  # decode steps between two looks by the host, in tokens


class State(NamedTuple):
    """Where every row of a batch stands.

    Attributes:
      cache: What was read so far.
      token: int32 ``[B]``, chosen last and not yet read.
      chosen: int32, how many tokens were chosen so far.
      finished: bool ``[B]``, rows that reached an end token, or whose logits broke.
    """

    cache: KVCache
    token: jax.Array
    chosen: jax.Array
    finished: jax.Array


class Settings(NamedTuple):
    """What stays the same through a call, as arrays.

    Attributes:
      dials: How to choose.
      rngs: PRNG keys ``[B]``; ``None`` where the choice is greedy.
      end_tokens: int32 ``[E]``.
    """

    dials: Dials
    rngs: jax.Array | None
    end_tokens: jax.Array


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: Model,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    cache: KVCache,
    settings: Settings,
) -> State:
    """Reads right-padded prompts and chooses the first token of each row.

    Args:
      model: The model.
      params: Its parameters.
      tokens: int32 ``[B, T]``, T a bucket.
      lengths: int32 ``[B]``, how many tokens of each row are real, >= 1.
      cache: Empty, with room; donated.
      settings: How to choose.

    Returns:
      The state after one new token a row.
    """
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    out = model.apply(
        params, None, tokens, mask=real, cache=cache, logits_at=lengths[:, None] - 1
    )
    count = jnp.zeros((), jnp.int32)
    token = _choose(out.logits[:, 0], count, settings)
    return State(out.cache or cache, token, count + 1, _ends(token, settings))


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def decode(
    model: Model,
    params: Params,
    state: State,
    steps: jax.Array,
    settings: Settings,
) -> tuple[State, jax.Array]:
    """Chooses up to ``steps`` more tokens a row, in one compiled loop.

    Args:
      model: The model.
      params: Its parameters.
      state: As ``prefill`` or ``decode`` left it; donated.
      steps: int32, at most ``CHUNK``; an array, so that any number is one program.
      settings: How to choose.

    Returns:
      The state, and the new tokens int32 ``[B, CHUNK]``; -2 where none was chosen.
    """

    def unfinished(carry: tuple[State, jax.Array, jax.Array]) -> jax.Array:
        state, _, step = carry
        return (step < steps) & ~state.finished.all()

    def advance(
        carry: tuple[State, jax.Array, jax.Array],
    ) -> tuple[State, jax.Array, jax.Array]:
        state, chosen, step = carry
        # A finished row reads nothing: its cache and its length stay as they are.
        read = jnp.maximum(state.token, 0)[:, None]
        going = ~state.finished
        out = model.apply(params, None, read, mask=going[:, None], cache=state.cache)
        token = _choose(out.logits[:, 0], state.chosen, settings)
        token = jnp.where(going, token, -2)
        finished = state.finished | _ends(token, settings)
        state = State(out.cache or state.cache, token, state.chosen + 1, finished)
        return state, chosen.at[:, step].set(token), step + 1

    chosen = jnp.full((state.token.shape[0], CHUNK), -2, jnp.int32)
    state, chosen, _ = jax.lax.while_loop(
        unfinished, advance, (state, chosen, jnp.zeros((), jnp.int32))
    )
    return state, chosen


def _choose(logits: jax.Array, count: jax.Array, settings: Settings) -> jax.Array:
    if settings.rngs is None:
        return choose(logits, settings.dials, None)
    # A row's n-th token depends on its own key and n, not on who sits beside it.
    rngs = jax.vmap(jax.random.fold_in, in_axes=(0, None))(settings.rngs, count)
    return choose(logits, settings.dials, rngs)


def _ends(token: jax.Array, settings: Settings) -> jax.Array:
    return (token == -1) | (token[:, None] == settings.end_tokens[None]).any(axis=-1)
