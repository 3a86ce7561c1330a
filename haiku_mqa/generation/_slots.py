"""An engine's compiled programs: a piece of a prompt, and some steps of some rows.

The cache and the counts of tokens stay on the device from one call to the next. All
else that a row is comes with each call, so that a slot changes hands by what the host
says. A program works on as many rows, and as much of their room, as its shapes say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.cache import KVCache, LayerCache
from haiku_mqa.generation._standing import Rows
from haiku_mqa.generation.choosing import choose
from haiku_mqa.generation.dials import Counts, Dials
from haiku_mqa.generation.request import MOST_TOLD
from haiku_mqa.model import Model, Params
from haiku_mqa.ops import kept_quantized

NONE_CHOSEN = -2


class Held(NamedTuple):
    """What slots hold on the device.

    Attributes:
      cache: What each has read.
      counts: Which tokens, for penalties.
    """

    cache: KVCache
    counts: Counts

    @classmethod
    def empty(cls, model: Model, cache: KVCache) -> Held:
        """Returns slots that nobody has, over a cache that is empty."""
        size = (cache.batch_size, model.config.vocab_size)
        counts = Counts(jnp.zeros(size, jnp.bool_), jnp.zeros(size, jnp.int32))
        return cls(cache, counts)


class Chosen(NamedTuple):
    """Tokens that were chosen, and how likely they were.

    Attributes:
      tokens: int32 ``[...]``; ``NONE_CHOSEN`` where none was.
      logprobs: float32 ``[...]``, of each in the model's own distribution; 0 where no
        row asked.
      top_tokens: int32 ``[..., E]``, the likeliest at each place.
      top_logprobs: float32 ``[..., E]``, of those.
    """

    tokens: jax.Array
    logprobs: jax.Array
    top_tokens: jax.Array
    top_logprobs: jax.Array


# What slots hold, token, going, chosen, step.
_State = tuple[Held, jax.Array, jax.Array, Chosen, jax.Array]


@functools.partial(
    jax.jit,
    static_argnames=("model", "width", "length"),
    donate_argnames="held",
    compiler_options=COMPILER_OPTIONS,
)
def read(
    model: Model,
    params: Params,
    held: Held,
    source: jax.Array,
    row: jax.Array,
    prompt: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    width: int,
    length: int,
) -> tuple[Held, jax.Array]:
    """Reads a piece of a prompt into one row.

    Args:
      model: The model.
      params: Its parameters.
      held: Of all rows; donated.
      source: int32, which row holds what comes before the piece.
      row: int32, which one holds the piece too from now on.
      prompt: int32 ``[P]``, the whole prompt and padding, P >= ``start + width``.
      start: int32, how many of its tokens were read before.
      count: int32, how many of the piece are real.
      width: T, of the piece with its padding.
      length: How many tokens of room are worked on; at least ``start + count``.

    Returns:
      What slots hold, and the logits after the piece, float32 ``[1, V]``.
    """
    mine = _part(held, source, 1, length)
    cache = KVCache(
        tuple(_forgotten(layer, start) for layer in mine.cache.layers),
        start[None],
        mine.cache.positions,
        mine.cache.segment_ids,
    )
    piece = jax.lax.dynamic_slice_in_dim(prompt, start, width)[None]
    real = jnp.arange(width)[None] < count
    last = jnp.maximum(count - 1, 0)[None, None]
    out = model.apply(params, None, piece, mask=real, cache=cache, logits_at=last)
    mine = mine._replace(cache=out.cache or cache)
    return _put_back(held, mine, row), out.logits[:, 0]


@functools.partial(jax.jit, donate_argnames="held")
def begin(
    held: Held,
    logits: jax.Array,
    row: jax.Array,
    prompt: jax.Array,
    count: jax.Array,
    rows: Rows,
) -> tuple[Held, Chosen]:
    """Chooses the first token of a request whose prompt is read.

    Args:
      held: Of all rows; donated.
      logits: float32 ``[1, V]``, after the prompt.
      row: int32, which one holds it.
      prompt: int32 ``[P]``, the prompt and padding.
      count: int32, how many of it are real.
      rows: The request's, W = 1.

    Returns:
      What slots hold, and the token, ``[1]``.
    """
    known = jnp.arange(prompt.shape[0])[None] < count
    counts = Counts.of(prompt[None], known, logits.shape[-1])
    token = _choose(logits, jnp.asarray(rows.chosen), rows, counts)
    counts = jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice(leaf, new, _at(row, leaf)),
        held.counts,
        counts.plus(token),
    )
    return held._replace(counts=counts), _told(logits, token, rows)


@functools.partial(
    jax.jit,
    static_argnames=("model", "chunk", "length"),
    donate_argnames="held",
    compiler_options=COMPILER_OPTIONS,
)
def decode(
    model: Model,
    params: Params,
    held: Held,
    first: jax.Array,
    steps: jax.Array,
    until_end: jax.Array,
    rows: Rows,
    *,
    chunk: int,
    length: int,
) -> tuple[Held, Chosen]:
    """Chooses up to ``steps`` more tokens in each of some rows that has any left.

    Args:
      model: The model.
      params: Its parameters.
      held: Of all rows; donated.
      first: int32, the first of the W rows that follow one another.
      steps: int32, at most ``chunk``.
      until_end: bool, whether to stop where the first of them comes to its end.
      rows: Where the W rows stand.
      chunk: C, the most that one call chooses.
      length: How many tokens of room are worked on; none of the rows needs more.

    Returns:
      What slots hold, and the tokens, ``[W, C]``.
    """
    left, before = jnp.asarray(rows.left), jnp.asarray(rows.chosen)
    ends = jnp.asarray(rows.ends)

    def unfinished(state: _State) -> jax.Array:
        _, _, going, _, step = state
        is_freed = until_end & (going != (left > 0)).any()
        return (step < steps) & going.any() & ~is_freed

    def advance(state: _State) -> _State:
        (cache, counts), token, going, chosen, step = state
        weights, token = kept_quantized(params, token)
        # A row that does not go on reads nothing: its cache stays as it is.
        reading = jnp.maximum(token, 0)[:, None]
        out = model.apply(weights, None, reading, mask=going[:, None], cache=cache)
        logits = out.logits[:, 0]
        token = _choose(logits, before + step, rows, counts)
        told = _told(logits, token, rows)
        token = jnp.where(going, token, NONE_CHOSEN)
        chosen = jax.tree.map(
            lambda all_of, new: all_of.at[:, step].set(new),
            chosen,
            told._replace(tokens=token),
        )
        ended = (token == -1) | (token[:, None] == ends).any(axis=-1)
        going = going & ~ended & (step + 1 < left)
        held = Held(out.cache or cache, counts.plus(token))
        return held, token, going, chosen, step + 1

    is_all = left.shape[0] == held.cache.batch_size and length == held.cache.capacity
    # The whole is worked on where it lies; of a part there is a copy meanwhile.
    mine = held if is_all else _part(held, first, left.shape[0], length)
    chosen = _none_chosen((left.shape[0], chunk), model.config.vocab_size)
    start = (mine, jnp.asarray(rows.token), left > 0, chosen, jnp.int32(0))
    mine, _, _, chosen, _ = jax.lax.while_loop(unfinished, advance, start)
    return mine if is_all else _put_back(held, mine, first), chosen


@jax.jit
def take_row(held: Held, row: jax.Array) -> Held:
    """Returns a copy of what one row holds."""
    return _part(held, row, 1, held.cache.capacity)


@functools.partial(jax.jit, donate_argnames="held")
def put_row(held: Held, row: jax.Array, taken: Held) -> Held:
    """Returns what slots hold with ``taken`` in one row; ``held`` is donated."""
    # One row a call: XLA copies the whole where it is to write two.
    return _put_back(held, taken, row)


def _part(held: Held, first: jax.Array, rows: int, length: int) -> Held:
    """Returns some rows, and the first tokens of their room."""

    def cut(axis: int | None) -> Callable[[jax.Array], jax.Array]:
        def cut_leaf(leaf: jax.Array) -> jax.Array:
            sizes = [rows, *leaf.shape[1:]]
            if axis is not None:
                sizes[axis] = min(length, sizes[axis])  # a ring keeps its own
            return jax.lax.dynamic_slice(leaf, _at(first, leaf), sizes)

        return cut_leaf

    cache = held.cache
    return Held(
        KVCache(
            jax.tree.map(cut(2), cache.layers),
            cut(None)(cache.lengths),
            cut(1)(cache.positions),
            cut(1)(cache.segment_ids),
        ),
        jax.tree.map(cut(None), held.counts),
    )


def _put_back(held: Held, part: Held, first: jax.Array) -> Held:
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice(leaf, new, _at(first, leaf)),
        held,
        part,
    )


def _at(first: jax.Array, leaf: jax.Array) -> tuple[jax.Array, ...]:
    return (first, *(jnp.zeros((), first.dtype) for _ in leaf.shape[1:]))


def _forgotten(layer: LayerCache, start: jax.Array) -> LayerCache:
    """Returns a layer with nothing in it but a prompt's first tokens."""
    # Who had the slot before may have left NaN, which a mask does not hide.
    places = jnp.arange(layer.keys.shape[2])
    kept = (places < start) | ((layer.window is not None) & (start > 0))

    def forget(leaf: jax.Array) -> jax.Array:
        mask = kept.reshape(1, 1, -1, *(1 for _ in leaf.shape[3:]))
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(forget, layer)


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


def _told(logits: jax.Array, token: jax.Array, rows: Rows) -> Chosen:
    """Returns chosen tokens ``[W]`` with how likely they were, where a row asks."""
    none = _none_chosen(token.shape, logits.shape[-1])

    def tell() -> Chosen:
        logprobs = jax.nn.log_softmax(logits)
        mine = jnp.take_along_axis(logprobs, jnp.maximum(token, 0)[:, None], axis=-1)
        top, top_tokens = jax.lax.top_k(logprobs, none.top_tokens.shape[-1])
        return Chosen(token, mine[:, 0], top_tokens, top)

    # Ranking a vocabulary takes a small model as long as choosing from it.
    return jax.lax.cond(rows.asks_logprobs, tell, lambda: none._replace(tokens=token))


def _none_chosen(size: tuple[int, ...], vocab_size: int) -> Chosen:
    top = (*size, min(MOST_TOLD, vocab_size))
    return Chosen(
        jnp.full(size, NONE_CHOSEN, jnp.int32),
        jnp.zeros(size, jnp.float32),
        jnp.zeros(top, jnp.int32),
        jnp.zeros(top, jnp.float32),
    )
