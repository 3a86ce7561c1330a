"""Which proposed tokens stand, and the token that follows them.

All that speculative decoding asks of ``choosing`` is asked here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from haiku_mqa.cache import KVCache
from haiku_mqa.generation.choosing import choose, filtered
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.sampling import Sampling

# What a token's key is folded with for draws other than that of the token itself.
_PROPOSING, _ACCEPTING = 1, 2

_NO_PENALTY = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Draw(NamedTuple):
    """How tokens are chosen, by the model and by whoever proposes.

    Attributes:
      dials: Of the ``Sampling``.
      rngs: PRNG keys ``[B]``; ``None`` where the choice is greedy.
    """

    dials: Dials
    rngs: jax.Array | None


class Proposal(NamedTuple):
    """Tokens that may come next in each row.

    Attributes:
      tokens: int32 ``[B, P]``; -1 where whoever proposes had NaN for logits.
      lengths: int32 ``[B]``, how many of them are meant; the rest is padding.
      scores: float32 ``[B, P, V]``, the filtered logits that each was drawn from;
        ``None`` where each was certain.
      memory: What the proposer remembers afterwards.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array | None
    memory: KVCache | None


def draw_of(
    samplings: Sequence[Sampling], vocab_size: int, rngs: jax.Array | None
) -> Draw:
    """Returns how rows are sampled, as arrays.

    Args:
      samplings: One for each of B rows.
      vocab_size: V.
      rngs: PRNG keys ``[B]``; ``None`` where every row is greedy.

    Raises:
      ValueError: One has a penalty. A penalty would have to count tokens that are only
        proposed.
    """
    for sampling, (name, off) in itertools.product(samplings, _NO_PENALTY.items()):
        value = getattr(sampling, name)
        if value != off:
            raise ValueError(
                f"{name} must be {off}, which is off, where tokens are proposed, "
                f"got {value}"
            )
    return Draw(Dials.of(samplings, vocab_size), rngs)


def choose_each(logits: jax.Array, counts: jax.Array, draw: Draw) -> jax.Array:
    """Chooses a token at each place as ``generate`` would there, with its randomness.

    Args:
      logits: float32 ``[B, T, V]``.
      counts: int32 ``[B, T]``, how many tokens the row chose before each place.
      draw: How to choose.

    Returns:
      int32 ``[B, T]``; -1 where the logits hold NaN.
    """

    def choose_one(logits: jax.Array, rngs: jax.Array | None) -> jax.Array:
        return choose(logits, draw.dials, rngs)[0]

    keys = None if draw.rngs is None else _keys(counts, draw.rngs)
    return jax.vmap(choose_one, 1, 1)(logits, keys)


def propose_one(
    logits: jax.Array, counts: jax.Array, draw: Draw
) -> tuple[jax.Array, jax.Array | None]:
    """Chooses the token that a draft proposes.

    Args:
      logits: float32 ``[B, V]``, the draft's.
      counts: int32 ``[B]``, how many tokens the row would have chosen before it.
      draw: How to choose.

    Returns:
      int32 ``[B]``, and the filtered logits ``[B, V]`` that it was drawn from; ``None``
      for these where the choice is greedy.
    """
    if draw.rngs is None:
        return choose(logits, draw.dials, None)[0], None
    keys = _keys(counts[:, None], draw.rngs)
    own = jax.vmap(jax.random.fold_in, (0, None))(keys[:, 0], _PROPOSING)
    return choose(logits, draw.dials, own)[0], filtered(logits, draw.dials)


def settle(
    logits: jax.Array, proposal: Proposal, counts: jax.Array, draw: Draw
) -> tuple[jax.Array, jax.Array]:
    """Holds proposals against what the model says after each of them.

    A certain proposal stands where the model's own choice is that token. One that was
    drawn from a distribution q stands with the probability min(1, p / q), and what
    replaces the first that falls is drawn from the rest, max(0, p - q) (Leviathan et
    al. 2023, Chen et al. 2023). Either way each token's distribution is the model's.

    Args:
      logits: float32 ``[B, P + 1, V]``, the model's before each proposal, and after
        the last.
      proposal: What was proposed.
      counts: int32 ``[B]``, how many tokens the row had chosen before.
      draw: How to choose.

    Returns:
      int32 ``[B]``, how many proposals stand from the first on, and int32 ``[B]``, the
      token that follows them; -1 where the logits there hold NaN.
    """
    places = jnp.arange(logits.shape[1], dtype=jnp.int32)
    tried = places[:-1] < proposal.lengths[:, None]  # [B, P]
    counts = counts[:, None] + places  # [B, P + 1]
    rows = jnp.arange(logits.shape[0])
    if proposal.scores is None or draw.rngs is None:
        wanted = choose_each(logits, counts, draw)
        accepted = _leading(tried & (wanted[:, :-1] == proposal.tokens))
        return accepted, wanted[rows, accepted]

    keys = _keys(counts, draw.rngs)
    wanted = jax.nn.softmax(_filter_each(logits, draw), axis=-1)
    offered = jax.nn.softmax(proposal.scores, axis=-1)
    token = jnp.maximum(proposal.tokens, 0)[..., None]  # [B, P, 1]
    stands = is_accepted(
        _uniform(keys[:, :-1]),
        jnp.take_along_axis(wanted[:, :-1], token, axis=-1)[..., 0],
        jnp.take_along_axis(offered, token, axis=-1)[..., 0],
    )
    accepted = _leading(tried & stands)
    # Where all stand there is nothing to take off: the token is one more of the model.
    fell = (accepted < proposal.lengths)[:, None]
    place = jnp.minimum(accepted, offered.shape[1] - 1)
    left = residual(wanted[rows, accepted], jnp.where(fell, offered[rows, place], 0.0))
    following = jax.vmap(jax.random.categorical)(keys[rows, accepted], jnp.log(left))
    broken = jnp.isnan(logits[rows, accepted]).any(axis=-1)
    return accepted, jnp.where(broken, -1, following).astype(jnp.int32)


def is_accepted(uniform: jax.Array, wanted: jax.Array, offered: jax.Array) -> jax.Array:
    """Returns whether a token stands: with the probability min(1, wanted / offered).

    Args:
      uniform: float32, in [0, 1).
      wanted: float32, the token's probability by the model.
      offered: float32, its probability by the draft.

    Example:
      >>> bool(is_accepted(jnp.float32(0.5), jnp.float32(0.2), jnp.float32(0.3)))
      True
    """
    return uniform * offered < wanted


def residual(wanted: jax.Array, offered: jax.Array) -> jax.Array:
    """Returns weights ``[B, V]`` of what replaces a proposal that fell.

    Args:
      wanted: float32 ``[B, V]``, probabilities by the model.
      offered: float32 ``[B, V]``, by the draft; zeros where nothing fell.

    Example:
      >>> residual(jnp.array([[0.5, 0.5]]), jnp.array([[0.75, 0.25]])).tolist()
      [[0.0, 0.25]]
    """
    left = jnp.maximum(wanted - offered, 0.0)
    # Equal distributions leave nothing, and by rounding alone does a token fall then.
    return jnp.where(left.sum(axis=-1, keepdims=True) > 0, left, wanted)


def _leading(stands: jax.Array) -> jax.Array:
    """Returns int32 ``[B]``, how many of ``[B, P]`` are true before the first false."""
    return stands.astype(jnp.int32).cumprod(axis=1).sum(axis=1, dtype=jnp.int32)


def _filter_each(logits: jax.Array, draw: Draw) -> jax.Array:
    def filter_one(logits: jax.Array) -> jax.Array:
        return filtered(logits, draw.dials)

    return jax.vmap(filter_one, 1, 1)(logits)


def _keys(counts: jax.Array, rngs: jax.Array) -> jax.Array:
    """Returns the key ``[B, T]`` of each row's token with so many before it.

    All that decides a token is drawn from its own key, and which earlier tokens stood
    is not: so a token that was proposed in vain may be drawn anew with the same key.
    """
    fold_row = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_row)(rngs, counts)


def _uniform(keys: jax.Array) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, _ACCEPTING))

    return jax.vmap(jax.vmap(one))(keys)
