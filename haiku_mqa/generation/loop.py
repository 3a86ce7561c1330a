"""The two compiled halves of generation: reading the prompt, and the decode loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.cache import KVCache
from haiku_mqa.generation.choosing import choose
from haiku_mqa.generation.dials import Counts, Dials
from haiku_mqa.model import Model, Params
from haiku_mqa.ops import kept_quantized

CHUNK = 32  # decode steps between two looks by the host, in tokens


class State(NamedTuple):
    """Where every row of a batch stands.

    Attributes:
      cache: What was read so far.
      token: int32 ``[B]``, chosen last and not yet read.
      chosen: int32, how many tokens were chosen so far.
      finished: bool ``[B]``, rows that reached an end token, or whose logits broke.
      counts: Which tokens each row holds; ``None`` where no penalty is on.
      logprob: float32 ``[B]``, of ``token``; ``None`` where nobody asked.
    """

    cache: KVCache
    token: jax.Array
    chosen: jax.Array
    finished: jax.Array
    counts: Counts | None = None
    logprob: jax.Array | None = None


class Settings(NamedTuple):
    """How tokens are chosen, as arrays.

    Attributes:
      dials: How to choose.
      rngs: PRNG keys ``[B]``; ``None`` where the choice is greedy.
      end_tokens: int32 ``[E]``.
      allowed: bool ``[B, V]``, which tokens may be chosen; all if ``None``.
    """

    dials: Dials
    rngs: jax.Array | None
    end_tokens: jax.Array
    allowed: jax.Array | None = None


class Before(NamedTuple):
    """What every row had read before its prompt.

    Attributes:
      held: bool ``[V]``, which tokens that was.
      logits: float32 ``[V]``, of the token after it, for a row whose prompt is empty;
        ``None`` where none is.
    """

    held: jax.Array | np.ndarray
    logits: jax.Array | None = None


class Chosen(NamedTuple):
    """What one call of ``decode`` chose.

    Attributes:
      tokens: int32 ``[B, CHUNK]``; -2 where none was chosen.
      logprobs: float32 ``[B, CHUNK]``; ``None`` where nobody asked.
    """

    tokens: jax.Array
    logprobs: jax.Array | None


@functools.partial(
    jax.jit,
    static_argnames=("model", "with_logprobs"),
    donate_argnames="cache",
    compiler_options=COMPILER_OPTIONS,
)
def prefill(
    model: Model,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    cache: KVCache,
    settings: Settings,
    with_logprobs: bool = False,
    before: Before | None = None,
) -> State:
    """Reads right-padded prompts and chooses the first token of each row.

    Args:
      model: The model.
      params: Its parameters.
      tokens: int32 ``[B, T]``, T a bucket.
      lengths: int32 ``[B]``, how many tokens of each row are real; >= 1 where nothing
        was read before.
      cache: What was read before, with room; donated.
      settings: How to choose.
      with_logprobs: Whether the state keeps the log-probability of each token.
      before: What that was; ``None`` if nothing.

    Returns:
      The state after one new token a row.
    """
    logits, cache = _read(model, params, tokens, lengths, cache, before)
    counts = _counted(tokens, lengths, logits, settings, before)
    return _begun(logits, cache, counts, settings, with_logprobs)


@functools.partial(
    jax.jit,
    static_argnames="model",
    donate_argnames="cache",
    compiler_options=COMPILER_OPTIONS,
)
def read(
    model: Model,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    cache: KVCache,
    before: Before | None = None,
) -> tuple[jax.Array, KVCache]:
    """Reads right-padded prompts and chooses nothing.

    Args:
      model: As ``prefill``; likewise the rest.
      params: See there.
      tokens: See there.
      lengths: See there.
      cache: See there.
      before: See there.

    Returns:
      The logits after each prompt, float32 ``[B, V]``, and the cache.
    """
    return _read(model, params, tokens, lengths, cache, before)


@functools.partial(jax.jit, static_argnames=("samples", "with_logprobs"))
def begin(
    logits: jax.Array,
    cache: KVCache,
    tokens: jax.Array,
    lengths: jax.Array,
    settings: Settings,
    samples: int,
    with_logprobs: bool = False,
    before: Before | None = None,
) -> State:
    """Chooses the first token of several rows a prompt, of which each was read once.

    Args:
      logits: float32 ``[P, V]``, as ``read`` returned them.
      cache: What ``read`` returned with them.
      tokens: int32 ``[P, T]``, the prompts.
      lengths: int32 ``[P]``, of the prompts.
      settings: How to choose; B is P times ``samples``.
      samples: How many rows each prompt becomes; they follow one another.
      with_logprobs: As ``prefill``.
      before: As ``prefill``.

    Returns:
      The state after one new token a row.
    """
    repeated = functools.partial(jnp.repeat, repeats=samples, axis=0)
    logits, tokens, lengths = map(repeated, (logits, tokens, lengths))
    counts = _counted(tokens, lengths, logits, settings, before)
    cache = jax.tree.map(repeated, cache)
    return _begun(logits, cache, counts, settings, with_logprobs)


@functools.partial(
    jax.jit,
    static_argnames="model",
    donate_argnames="state",
    compiler_options=COMPILER_OPTIONS,
)
def decode(
    model: Model,
    params: Params,
    state: State,
    steps: jax.Array,
    settings: Settings,
) -> tuple[State, Chosen]:
    """Chooses up to ``steps`` more tokens a row, in one compiled loop.

    Args:
      model: The model.
      params: Its parameters.
      state: As ``prefill`` or ``decode`` left it; donated.
      steps: int32, at most ``CHUNK``; an array, so that any number is one program.
      settings: How to choose; of what is ``allowed`` the first step alone is sure.

    Returns:
      The state, and the new tokens.
    """

    def unfinished(carry: tuple[State, Chosen, jax.Array]) -> jax.Array:
        state, _, step = carry
        return (step < steps) & ~state.finished.all()

    def advance(
        carry: tuple[State, Chosen, jax.Array],
    ) -> tuple[State, Chosen, jax.Array]:
        state, chosen, step = carry
        weights, token = kept_quantized(params, state.token)
        # A finished row reads nothing: its cache and its length stay as they are.
        read = jnp.maximum(token, 0)[:, None]
        going = ~state.finished
        out = model.apply(weights, None, read, mask=going[:, None], cache=state.cache)
        token, logprob = _choose(out.logits[:, 0], state.chosen, settings, state.counts)
        token = jnp.where(going, token, -2)
        finished = state.finished | _ends(token, settings)
        tokens, logprobs = chosen.tokens.at[:, step].set(token), chosen.logprobs
        if logprobs is not None:
            logprobs = logprobs.at[:, step].set(logprob)
        state = State(
            cache=out.cache or state.cache,
            token=token,
            chosen=state.chosen + 1,
            finished=finished,
            counts=None if state.counts is None else state.counts.plus(token),
            logprob=None if state.logprob is None else logprob,
        )
        return state, Chosen(tokens, logprobs), step + 1

    size = (state.token.shape[0], CHUNK)
    none = Chosen(
        jnp.full(size, -2, jnp.int32),
        None if state.logprob is None else jnp.zeros(size, jnp.float32),
    )
    state, chosen, _ = jax.lax.while_loop(
        unfinished, advance, (state, none, jnp.zeros((), jnp.int32))
    )
    return state, chosen


def _read(
    model: Model,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    cache: KVCache,
    before: Before | None,
) -> tuple[jax.Array, KVCache]:
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    last = jnp.maximum(lengths - 1, 0)[:, None]
    out = model.apply(params, None, tokens, mask=real, cache=cache, logits_at=last)
    logits = out.logits[:, 0]
    if before is not None and before.logits is not None:
        logits = jnp.where(lengths[:, None] > 0, logits, before.logits)
    return logits, out.cache or cache


def _counted(
    tokens: jax.Array,
    lengths: jax.Array,
    logits: jax.Array,
    settings: Settings,
    before: Before | None,
) -> Counts | None:
    if not settings.dials.needs_counts:
        return None
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    counts = Counts.of(tokens, real, logits.shape[-1])
    if before is None:
        return counts
    return counts._replace(prompt=counts.prompt | before.held)


def _begun(
    logits: jax.Array,
    cache: KVCache,
    counts: Counts | None,
    settings: Settings,
    with_logprobs: bool,
) -> State:
    count = jnp.zeros((), jnp.int32)
    token, logprob = _choose(logits, count, settings, counts)
    return State(
        cache=cache,
        token=token,
        chosen=count + 1,
        finished=_ends(token, settings),
        counts=None if counts is None else counts.plus(token),
        logprob=logprob if with_logprobs else None,
    )


def _choose(
    logits: jax.Array, count: jax.Array, settings: Settings, counts: Counts | None
) -> tuple[jax.Array, jax.Array]:
    rngs = settings.rngs
    if rngs is not None:
        # A row's n-th token depends on its own key and n, not on who sits beside it.
        rngs = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, count)
    return choose(logits, settings.dials, rngs, counts, settings.allowed)


def _ends(token: jax.Array, settings: Settings) -> jax.Array:
    return (token == -1) | (token[:, None] == settings.end_tokens[None]).any(axis=-1)
