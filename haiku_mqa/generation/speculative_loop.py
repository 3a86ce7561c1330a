"""The compiled parts of speculative decoding: its beginning, and the loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.cache import KVCache
from haiku_mqa.generation.acceptance import Draw, Proposal, choose_each, settle
from haiku_mqa.generation.proposers import Proposer
from haiku_mqa.model import Model, Params
from haiku_mqa.ops import kept_quantized

MODEL_IS_NAN, DRAFT_IS_NAN = 1, 2
NO_TOKEN = -2  # pads end tokens; -1 is what logits that are NaN choose


class Rows(NamedTuple):
    """Where every row stands; each is an array over rows.

    Attributes:
      text: int32 ``[B, S]``, prompts and what was chosen, end tokens included.
      known: int32 ``[B]``, how many tokens of each row that is.
      finished: bool ``[B]``, rows that ended, are full, or whose logits broke.
      fault: int32 ``[B]``, whose logits were NaN; 0 where nobody's.
      proposed: int32 ``[B]``, how many tokens were proposed, those behind the row's end
        apart.
      accepted: int32 ``[B]``, how many of these stood.
    """

    text: jax.Array
    known: jax.Array
    finished: jax.Array
    fault: jax.Array
    proposed: jax.Array
    accepted: jax.Array


class State(NamedTuple):
    """What goes around the loop.

    Attributes:
      cache: The model's: all but the last known token of each row.
      memory: The proposer's own.
      rows: Where every row stands.
      calls: int32, how often the model was called to read proposals.
    """

    cache: KVCache
    memory: KVCache | None
    rows: Rows
    calls: jax.Array


class Request(NamedTuple):
    """What stays the same through a call, as arrays.

    Attributes:
      draw: How to choose.
      starts: int32 ``[B]``, lengths of the prompts.
      limits: int32 ``[B]``, how long each row may become.
      end_tokens: int32 ``[E]``, padded with ``NO_TOKEN``.
    """

    draw: Draw
    starts: jax.Array
    limits: jax.Array
    end_tokens: jax.Array


@functools.partial(jax.jit, donate_argnames="cache", compiler_options=COMPILER_OPTIONS)
def begin(
    proposer: Proposer,
    logits: jax.Array,
    texts: jax.Array,
    cache: KVCache,
    request: Request,
) -> State:
    """Chooses the first token of each row, and lets the proposer read the texts.

    Args:
      proposer: Who proposes.
      logits: float32 ``[B, V]``, after each text.
      texts: int32 ``[B, T]``, all that rows hold, right-padded, T a bucket.
      cache: In which the model has read them, with room for the longest row; donated.
      request: How to choose, and how far.

    Returns:
      The state after one new token a row.
    """
    rows, width = texts.shape
    starts = request.starts
    real = jnp.arange(width) < starts[:, None]
    nothing = jnp.zeros_like(starts)
    new = choose_each(logits[:, None], nothing[:, None], request.draw)  # [B, 1]
    text = jnp.zeros((rows, cache.capacity), jnp.int32).at[:, :width].set(texts)
    empty = Rows(text, starts, jnp.zeros(rows, bool), nothing, nothing, nothing)
    state = State(
        cache,
        proposer.begin(texts, real, cache.capacity),
        empty,
        jnp.zeros((), jnp.int32),
    )
    return state._replace(rows=_written(empty, new, nothing, request))


@functools.partial(
    jax.jit,
    static_argnames="model",
    donate_argnames="state",
    compiler_options=COMPILER_OPTIONS,
)
def advance(
    model: Model,
    params: Params,
    proposer: Proposer,
    state: State,
    steps: jax.Array,
    request: Request,
) -> State:
    """Proposes, reads, accepts and rolls back, up to ``steps`` times.

    Args:
      model: The model.
      params: Its parameters.
      proposer: Who proposes.
      state: As ``begin`` or ``advance`` left it; donated.
      steps: int32; an array, so that any number is one program.
      request: How to choose, and how far.

    Returns:
      The state.
    """
    until = state.calls + steps

    def unfinished(state: State) -> jax.Array:
        return (state.calls < until) & ~state.rows.finished.all()

    def step(state: State) -> State:
        (own, others), state = kept_quantized((params, proposer), state)
        return _step(model, own, others, state, request)

    return jax.lax.while_loop(unfinished, step, state)


def rolled_back(cache: KVCache, lengths: jax.Array) -> KVCache:
    """Returns a cache that forgot the last tokens of its rows.

    Only ``lengths`` change: what is stored behind a row's length is seen by no token,
    and written over by the next.

    Args:
      cache: What was read.
      lengths: int32 ``[B]``, how many tokens a row keeps at most.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> cache = build(DecoderConfig(
      ...     vocab_size=9, num_layers=1, num_heads=2, d_model=8, d_ff=8
      ... )).init_cache(2, 4)
      >>> rolled_back(cache, jnp.array([3, 1])).lengths.tolist()
      [0, 0]
    """
    return cache.rolled_back(jnp.minimum(cache.lengths, lengths))


def _step(
    model: Model, params: Params, proposer: Proposer, state: State, request: Request
) -> State:
    rows, going = state.rows, ~state.rows.finished
    counts = rows.known - request.starts
    # The token that follows the proposals takes a place too. So no call writes where
    # the row may not go, and a cache of its length is enough.
    room = jnp.minimum(request.limits - rows.known - 1, proposer.num_tokens)
    room = jnp.where(going, room, 0)
    proposal = proposer.propose(
        rows.text, rows.known, room, state.memory, counts, request.draw
    )
    last = jnp.take_along_axis(rows.text, rows.known[:, None] - 1, axis=1)
    read = jnp.concatenate([last, proposal.tokens], axis=1)  # [B, P + 1]
    real = going[:, None] & (jnp.arange(read.shape[1]) <= proposal.lengths[:, None])
    out = model.apply(params, None, jnp.maximum(read, 0), mask=real, cache=state.cache)
    accepted, following = settle(out.logits, proposal, counts, request.draw)
    places = jnp.arange(read.shape[1])
    padded = jnp.concatenate([proposal.tokens, following[:, None]], axis=1)
    new = jnp.where(places == accepted[:, None], following[:, None], padded)
    rows = _written(rows, new, accepted, request, proposal)
    memory = proposal.memory
    return State(
        rolled_back(out.cache or state.cache, rows.known - 1),
        None if memory is None else rolled_back(memory, rows.known - 1),
        rows,
        state.calls + 1,
    )


def _written(
    rows: Rows,
    new: jax.Array,
    accepted: jax.Array,
    request: Request,
    proposal: Proposal | None = None,
) -> Rows:
    """Returns rows with new tokens, as far as they go on.

    Args:
      rows: As they were.
      new: int32 ``[B, T]``, proposals and the token that follows those accepted.
      accepted: int32 ``[B]``, how many proposals stand.
      request: Where rows end.
      proposal: What was proposed, if anything was.
    """
    going = ~rows.finished
    places = jnp.arange(new.shape[1], dtype=jnp.int32)
    ends = (new[..., None] == request.end_tokens).any(axis=-1)  # [B, T]
    ends &= places <= accepted[:, None]
    first = jnp.where(ends.any(axis=1), ends.argmax(axis=1), accepted)
    count = jnp.where(going, first.astype(jnp.int32) + 1, 0)
    slots = jnp.where(
        places < count[:, None], rows.known[:, None] + places, rows.text.shape[1]
    )
    text = rows.text.at[jnp.arange(len(new))[:, None], slots].set(new, mode="drop")
    known = rows.known + count

    ended = ends.any(axis=1)
    following = jnp.take_along_axis(new, accepted[:, None], axis=1)[:, 0]
    broken = going & ~ended & (following == -1)
    fault = jnp.where(broken, MODEL_IS_NAN, rows.fault)
    proposed = jnp.zeros_like(accepted)
    if proposal is not None:
        meant = places[:-1] < proposal.lengths[:, None]
        draft = (meant & (proposal.tokens == -1)).any(axis=1)
        fault = jnp.where(going & draft, DRAFT_IS_NAN, fault)
        proposed = proposal.lengths
    proposed = jnp.where(ended, jnp.minimum(proposed, count), proposed)
    return Rows(
        text=text,
        known=known,
        finished=rows.finished | ended | (known >= request.limits) | (fault > 0),
        fault=fault,
        proposed=rows.proposed + jnp.where(going, proposed, 0),
        accepted=rows.accepted + jnp.minimum(accepted, count),
    )
