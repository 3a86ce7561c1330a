"""An engine's two compiled programs: a piece of a prompt, and some steps of all rows.

The cache and the counts of tokens stay on the device from one call to the next. All
else that a row is comes with each call, so that a slot changes hands by what the host
says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.cache import KVCache
from haiku_mqa.generation.choosing import choose
from haiku_mqa.generation.dials import Counts, Dials
from haiku_mqa.generation.request import MAX_BIASES, Request
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.model import Model, Params

NONE_CHOSEN = -2
_NO_END = -3  # as no token is
_ENDS = 8  # end tokens that a row is stopped at; the host sees to any further ones
_IDLE = Sampling(temperature=0.0)


class Held(NamedTuple):
    """What slots hold on the device.

    Attributes:
      cache: What each has read.
      counts: Which tokens, for penalties.
    """

    cache: KVCache
    counts: Counts

    @classmethod
    def empty(cls, model: Model, slots: int, max_length: int) -> Held:
        """Returns slots that nobody has."""
        size = (slots, model.config.vocab_size)
        counts = Counts(jnp.zeros(size, jnp.bool_), jnp.zeros(size, jnp.int32))
        return cls(model.init_cache(slots, max_length), counts)


# What slots hold, token, going, chosen, step.
_State = tuple[Held, jax.Array, jax.Array, jax.Array, jax.Array]


class Rows(NamedTuple):
    """Where rows stand before a call.

    Attributes:
      token: int32 ``[B]``, chosen last and not yet read.
      chosen: int32 ``[B]``, how many tokens were chosen so far.
      left: int32 ``[B]``, how many may still be; 0 where no one decodes.
      ends: int32 ``[B, E]``, end tokens.
      rngs: uint32 ``[B, W]``, the words of PRNG keys.
      dials: How to choose, of which none is ``None``.
      is_plain: bool, whether every row is greedy and nothing else.
    """

    token: np.ndarray
    chosen: np.ndarray
    left: np.ndarray
    ends: np.ndarray
    rngs: np.ndarray
    dials: Dials
    is_plain: np.ndarray

    @classmethod
    def of(cls, requests: Sequence[Request | None], vocab_size: int) -> Rows:
        """Returns the rows of requests; an idle one for each ``None``."""
        token, chosen, left = np.zeros((3, len(requests)), np.int32)
        ends = np.full((len(requests), _ENDS), _NO_END, np.int32)
        rngs = np.stack([key_words(0)] * len(requests))
        for row, request in enumerate(requests):
            if request is None:
                continue
            tokens = request.tokens
            token[row] = tokens[-1] if tokens else 0
            chosen[row] = len(tokens)
            left[row] = request.max_new_tokens - len(tokens)
            first = request.end_tokens[:_ENDS]
            ends[row, : len(first)] = first
            rngs[row] = key_words(request.seed or 0)
        samplings = tuple(
            request.sampling if request else _IDLE for request in requests
        )
        dials, is_plain = _dials(samplings, vocab_size)
        return cls(token, chosen, left, ends, rngs, dials, np.asarray(is_plain))


@functools.lru_cache(maxsize=256)
def _dials(samplings: tuple[Sampling, ...], vocab_size: int) -> tuple[Dials, bool]:
    dials = Dials.all_on(samplings, vocab_size, MAX_BIASES)
    return dials, Dials.of(samplings, vocab_size) == Dials()


@functools.lru_cache(maxsize=1024)
def key_words(seed: int) -> np.ndarray:
    """Returns the words of ``jax.random.key(seed)``, uint32 ``[W]``."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


@functools.partial(jax.jit, static_argnames="model", donate_argnames="held")
def read(
    model: Model,
    params: Params,
    held: Held,
    row: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    rows: Rows,
) -> tuple[Held, jax.Array]:
    """Reads a piece of a prompt into one row, and chooses the token after it.

    Args:
      model: The model.
      params: Its parameters.
      held: Of all rows; donated.
      row: int32, which.
      tokens: int32 ``[1, T]``, the piece, padded on the right.
      start: int32, how many tokens of the prompt were read before.
      count: int32, how many of the piece are real.
      rows: The request's, B = 1.

    Returns:
      What slots hold, and the token int32; it counts where the piece is the last.
    """
    mine: Held = jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), held
    )
    # Who had the slot before may have left NaN, which a mask does not hide.
    mine = jax.tree.map(
        lambda leaf: jnp.where(start == 0, jnp.zeros_like(leaf), leaf), mine
    )
    cache = dataclasses.replace(mine.cache, lengths=start[None])
    real = jnp.arange(tokens.shape[1])[None] < count
    last = jnp.maximum(count - 1, 0)[None, None]
    out = model.apply(params, None, tokens, mask=real, cache=cache, logits_at=last)
    logits = out.logits[:, 0]
    # Nothing is generated until the last piece is read, whose token is then counted.
    counts = Counts.of(tokens, real, logits.shape[-1])
    counts = counts._replace(prompt=counts.prompt | mine.counts.prompt)
    token = _choose(logits, jnp.asarray(rows.chosen), rows, counts)
    mine = Held(out.cache or cache, counts.plus(token))
    held = jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, row, 0),
        held,
        mine,
    )
    return held, token[0]


@functools.partial(jax.jit, static_argnames=("model", "chunk"), donate_argnames="held")
def decode(
    model: Model,
    params: Params,
    held: Held,
    steps: jax.Array,
    rows: Rows,
    *,
    chunk: int,
) -> tuple[Held, jax.Array]:
    """Chooses up to ``steps`` more tokens in each row that has any left.

    Args:
      model: The model.
      params: Its parameters.
      held: Of all rows; donated.
      steps: int32, at most ``chunk``.
      rows: Where they stand.
      chunk: C, the most that one call chooses.

    Returns:
      What slots hold, and the tokens int32 ``[B, C]``; ``NONE_CHOSEN`` where none was.
    """
    left, before = jnp.asarray(rows.left), jnp.asarray(rows.chosen)
    ends = jnp.asarray(rows.ends)

    def unfinished(state: _State) -> jax.Array:
        _, _, going, _, step = state
        return (step < steps) & going.any()

    def advance(state: _State) -> _State:
        (cache, counts), token, going, chosen, step = state
        # A row that does not go on reads nothing: its cache stays as it is.
        reading = jnp.maximum(token, 0)[:, None]
        out = model.apply(params, None, reading, mask=going[:, None], cache=cache)
        token = _choose(out.logits[:, 0], before + step, rows, counts)
        token = jnp.where(going, token, NONE_CHOSEN)
        ended = (token == -1) | (token[:, None] == ends).any(axis=-1)
        going = going & ~ended & (step + 1 < left)
        held = Held(out.cache or cache, counts.plus(token))
        return held, token, going, chosen.at[:, step].set(token), step + 1

    chosen = jnp.full((left.shape[0], chunk), NONE_CHOSEN, jnp.int32)
    start = (held, jnp.asarray(rows.token), left > 0, chosen, jnp.int32(0))
    held, _, _, chosen, _ = jax.lax.while_loop(unfinished, advance, start)
    return held, chosen


def _choose(
    logits: jax.Array, count: jax.Array, rows: Rows, counts: Counts
) -> jax.Array:
    # A row's n-th token depends on its own key and n, as generate has it.
    keys = jax.random.wrap_key_data(jnp.asarray(rows.rngs))
    rngs = jax.vmap(jax.random.fold_in)(keys, count)
    # Drawing noise for a vocabulary takes longer than a small model's step.
    return jax.lax.cond(
        rows.is_plain,
        lambda: choose(logits, Dials(), None)[0],
        lambda: choose(logits, rows.dials, rngs, counts)[0],
    )
