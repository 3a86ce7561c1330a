"""Beam search: the likeliest continuations, several kept side by side."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import is_number, whole_number
from haiku_mqa._compiling import COMPILER_OPTIONS
from haiku_mqa.cache import KVCache
from haiku_mqa.checks import check_params
from haiku_mqa.generation._padding import bucket, padded
from haiku_mqa.generation._past import checked_past
from haiku_mqa.generation._request import check_ids, check_prompts
from haiku_mqa.generation.loop import read
from haiku_mqa.generation.prefix import Prefix
from haiku_mqa.model import Model, Params


@dataclasses.dataclass(frozen=True)
class BeamResult:
    """What beam search found.

    Attributes:
      tokens: For each prompt its continuations, best first, at most ``num_beams``;
        the prompt and the end token are not among their tokens.
      scores: Of each continuation: the sum of the log-probabilities of its tokens,
        an end token included, over their number to the power of ``length_penalty``.

    Example:
      >>> BeamResult(tokens=[[[5, 6], [5]]], scores=[[-0.5, -0.75]]).tokens[0][0]
      [5, 6]
    """

    tokens: list[list[list[int]]]
    scores: list[list[float]]


def beam_search(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    end_tokens: Sequence[int] = (),
    prefix: Prefix | None = None,
    cache_dtype: jax.typing.DTypeLike | None = None,
    ring_cache: bool = False,
) -> BeamResult:
    """Searches the likeliest continuations of each prompt.

    At each step the ``num_beams`` likeliest of all one-token continuations are kept.
    One that ends is put aside, and the search goes on until none that goes on could
    still score better than those. One beam is the greedy choice.

    Args:
      model: The model.
      params: Its parameters.
      prompts: One list of token ids each, none empty.
      num_beams: How many continuations are kept at each step.
      max_new_tokens: How many tokens a continuation has at most.
      length_penalty: Power of the length that scores are divided by: above 0 favours
        long continuations, 0 compares plain sums, below 0 favours short ones.
      end_tokens: A continuation ends with one of these.
      prefix: As ``generate``.
      cache_dtype: As ``generate``.
      ring_cache: As ``generate``.

    Returns:
      The continuations and their scores.

    Raises:
      ValueError: An argument is out of what is allowed, as in ``generate``.
      FloatingPointError: The model's logits were NaN.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> params = model.init(jax.random.key(0))
      >>> found = beam_search(
      ...     model, params, [[1, 2], [3]], num_beams=3, max_new_tokens=4)
      >>> [len(tokens) for tokens in found.tokens[0]]
      [4, 4, 4]
      >>> found.scores[0] == sorted(found.scores[0], reverse=True)
      True
    """
    num_beams = whole_number("num_beams", num_beams)
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
    if not is_number(length_penalty):
        raise ValueError(f"length_penalty must be a number, got {length_penalty!r}")
    past = checked_past(model, prefix, cache_dtype, ring_cache)
    check_prompts(prompts, max_new_tokens, model.config, len(past.tokens))
    check_ids("end_tokens", end_tokens, model.config.vocab_size)
    check_params(params, model.param_shapes)

    params = jax.device_put(params)
    tokens, lengths = padded(prompts)
    cache, before = past.begun(model, len(lengths), int(lengths.max()) + max_new_tokens)
    logits, cache = read(model, params, tokens, lengths, cache, before)
    found = _search(
        model,
        params,
        logits,
        cache,
        jnp.asarray(sorted(set(end_tokens)), jnp.int32),
        jnp.int32(max_new_tokens),
        jnp.float32(length_penalty),
        num_beams=num_beams,
        room=bucket(max_new_tokens),
    )
    if np.asarray(found.broken).any():
        raise FloatingPointError(
            f"the logits of prompt {int(np.asarray(found.broken).argmax())} are NaN; "
            "check the parameters with haiku_mqa.checks.check_finite"
        )
    return _result(found.ended, set(end_tokens))


class _Beams(NamedTuple):
    """Continuations of each prompt, best first.

    Attributes:
      scores: float32 ``[P, K]``; -inf where there is none.
      tokens: int32 ``[P, K, N]``.
      lengths: int32 ``[P, K]``, how many of the N are there.
    """

    scores: jax.Array
    tokens: jax.Array
    lengths: jax.Array


class _Search(NamedTuple):
    """Where a search stands.

    Attributes:
      going: Beams that go on; their scores are sums of log-probabilities.
      ended: Those put aside; their scores are final.
      logits: float32 ``[P, K, V]``, after each beam that goes on.
      cache: Of P times K rows.
      step: int32, how many tokens each beam that goes on has.
      broken: bool ``[P]``, prompts whose logits are NaN.
    """

    going: _Beams
    ended: _Beams
    logits: jax.Array
    cache: KVCache
    step: jax.Array
    broken: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=("model", "num_beams", "room"),
    compiler_options=COMPILER_OPTIONS,
)
def _search(
    model: Model,
    params: Params,
    logits: jax.Array,
    cache: KVCache,
    end_tokens: jax.Array,
    steps: jax.Array,
    length_penalty: jax.Array,
    *,
    num_beams: int,
    room: int,
) -> _Search:
    prompts, vocab_size = logits.shape
    # An end token can stand behind each beam: of so many candidates enough go on. One
    # beam looks at its likeliest token alone, as the greedy choice does.
    wanted = num_beams * max(2, 1 + end_tokens.shape[0]) if num_beams > 1 else 1
    wanted = min(wanted, num_beams * vocab_size)

    def over_length(sums: jax.Array, length: jax.Array) -> jax.Array:
        return sums / length.astype(jnp.float32) ** length_penalty

    def open_still(search: _Search) -> jax.Array:
        # Sums only fall. The most that one can become is what it is, at the length
        # that divides it best.
        best = search.going.scores[:, 0]
        length = jnp.where(length_penalty > 0, steps, search.step + 1)
        hope = over_length(best, length) > search.ended.scores[:, -1]
        return (search.step < steps) & (hope & ~search.broken).any()

    def advance(search: _Search) -> _Search:
        going, ended, step = search.going, search.ended, search.step
        log_p = jax.nn.log_softmax(search.logits, axis=-1)
        broken = search.broken | jnp.isnan(search.logits).any(axis=(1, 2))
        sums = (going.scores[:, :, None] + log_p).reshape(prompts, -1)
        sums, places = jax.lax.top_k(sums, wanted)
        beams, token = places // vocab_size, places % vocab_size
        tokens = _rows_of(going.tokens, beams).at[:, :, step].set(token)
        lengths = jnp.broadcast_to(step + 1, sums.shape)

        ends = (token[:, :, None] == end_tokens).any(axis=-1)
        ends |= step + 1 == steps
        # Those past the first K are there to go on alone.
        final = ends & (jnp.arange(wanted) < num_beams)
        final = jnp.where(final, over_length(sums, step + 1), -jnp.inf)
        ended = _best(num_beams, ended, _Beams(final, tokens, lengths))[0]
        sums = jnp.where(ends, -jnp.inf, sums)
        going, kept = _best(num_beams, _Beams(sums, tokens, lengths))

        beams = jnp.take_along_axis(beams, kept, axis=1)
        rows = (beams + num_beams * jnp.arange(prompts)[:, None]).reshape(-1)
        last = jnp.take_along_axis(token, kept, axis=1).reshape(-1, 1)
        # Each beam goes on from the memory of the one that it continues.
        cache = jax.tree.map(lambda leaf: leaf[rows], search.cache)
        out = model.apply(params, None, last, cache=cache)
        logits = out.logits[:, 0].reshape(search.logits.shape)
        return _Search(going, ended, logits, out.cache or cache, step + 1, broken)

    size = (prompts, num_beams)
    none = _Beams(
        jnp.full(size, -jnp.inf),
        jnp.zeros((*size, room), jnp.int32),
        jnp.zeros(size, jnp.int32),
    )
    repeated = functools.partial(jnp.repeat, repeats=num_beams, axis=0)
    start = _Search(
        # All beams are equal at first, and only one of them counts.
        going=none._replace(scores=none.scores.at[:, 0].set(0.0)),
        ended=none,
        logits=repeated(logits).reshape(*size, vocab_size),
        cache=jax.tree.map(repeated, cache),
        step=jnp.zeros((), jnp.int32),
        broken=jnp.zeros(prompts, bool),
    )
    return jax.lax.while_loop(open_still, advance, start)


def _best(num_beams: int, *groups: _Beams) -> tuple[_Beams, jax.Array]:
    """Returns the best of all groups, and where among them all each stood."""
    every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *groups)
    missing = max(0, num_beams - every.scores.shape[1])
    scores = jnp.pad(every.scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    scores, places = jax.lax.top_k(scores, num_beams)
    places = jnp.minimum(places, every.scores.shape[1] - 1)
    tokens, lengths = (_rows_of(leaf, places) for leaf in every[1:])
    return _Beams(scores, tokens, lengths), places


def _rows_of(values: jax.Array, places: jax.Array) -> jax.Array:
    return jax.vmap(lambda mine, at: mine[at])(values, places)


def _result(beams: _Beams, ends: set[int]) -> BeamResult:
    scores, tokens, lengths = (np.asarray(leaf) for leaf in beams)
    found: list[list[list[int]]] = []
    for row in range(len(scores)):
        mine = [
            tokens[row, beam, : lengths[row, beam]].tolist()
            for beam in range(scores.shape[1])
            if scores[row, beam] > -math.inf
        ]
        found.append([t[:-1] if t and t[-1] in ends else t for t in mine])
    kept = [[float(s) for s in row if s > -math.inf] for row in scores]
    return BeamResult(found, kept)
