"""Decoders with one thing wrong, each by a patch of the code under test.

A law that only ever sees good code proves nothing. ``MUTANTS`` gives each mutant the
bucket it is planted in and the laws that must kill it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import haiku_mqa as hm
from haiku_mqa import cache as cache_room
from haiku_mqa.generation import Prefix
from haiku_mqa.modules import attention as attention_module
from haiku_mqa.modules import context as context_module
from haiku_mqa.modules import language_model
from haiku_mqa.ops import attention as attention_op
from haiku_mqa.testing import BUCKETS, Subject
from tests.laws.forms import FORMS

_attend = attention_op.multi_query_attention
_exponentials = attention_op._exponentials
_make_context = context_module.make_context
_rotate = attention_module.apply_rotary
_write = cache_room.LayerCache.write
_ring_slots = cache_room.RingCache.slots
_ring_orders = cache_room.RingCache.orders
_rows = cache_room.KVCache.rows
_prefix_rows = Prefix.rows


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One thing wrong.

    Attributes:
      bucket: The config it is planted in.
      killers: Laws of which each must be broken.
      patches: Where, by module and name, and what stands there instead.
      form: What its caches are, where it is not the static one.
    """

    bucket: str | None
    killers: tuple[str, ...]
    patches: tuple[tuple[Any, str, Callable[..., Any]], ...]
    form: str | None = None

    def subject(self, params: Any = None) -> Subject:
        """Returns what the laws are to test; planted or not, by when it is called."""
        if self.form is not None:
            return Subject(FORMS[self.form], params)
        return Subject(hm.build(BUCKETS[self.bucket]), params)

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Plants the mutant for a while."""
        with contextlib.ExitStack() as stack:
            for place, name, wrong in self.patches:
                stack.enter_context(mock.patch.object(place, name, wrong))
            yield


def _attention(change: Callable[..., tuple]) -> tuple:
    """Patches what the module hands to attention."""

    def wrong(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, **options: Any):
        q, k, v, mask, options = change(q, k, v, mask, options)
        return _attend(q, k, v, mask, **options)

    return ((attention_module, "multi_query_attention", wrong),)


def _tile(q, k, v, mask, options):
    """Head n reads n % K, as tiled heads would have it, and not n // G."""
    tiled = jnp.arange(q.shape[2]) % k.shape[2]
    return q, k[:, :, tiled], v[:, :, tiled], mask, options


def _wrong_group(q, k, v, mask, options):
    """Every group reads its neighbour's head."""
    return q, jnp.roll(k, 1, axis=2), jnp.roll(v, 1, axis=2), mask, options


def _swapped(q, k, v, mask, options):
    return q, v, k, mask, options


def _unscaled(q, k, v, mask, options):
    return q, k, v, mask, {**options, "scale": 1.0}


def _sees_next(q, k, v, mask, options):
    """The mask off by one: the next token is seen."""
    return q, k, v, mask | jnp.roll(mask, 1, axis=-1), options


def _misses_self(q, k, v, mask, options):
    """The mask off by one: the token itself is not seen."""
    return q, k, v, mask & jnp.roll(mask, -1, axis=-1), options


def _transposed(q, k, v, mask, options):
    square = mask.shape[-1] == mask.shape[-2]
    return q, k, v, mask.swapaxes(-1, -2) if square else mask, options


def _coarse_softmax(logits, mask):
    exps, total = _exponentials(logits.astype(jnp.bfloat16), mask)
    return exps.astype(jnp.float32), total.astype(jnp.float32)


def _mean_of_forbidden(logits, mask):
    """An empty row as a softmax has it: the mean of all that is forbidden."""
    exps, total = _exponentials(logits, mask)
    empty = jnp.broadcast_to(~mask.any(axis=-1, keepdims=True), total.shape)
    return jnp.where(empty, 1.0, exps), jnp.where(empty, mask.shape[-1], total)


def _rotated_values(q, k, v, mask, options):
    positions = jnp.broadcast_to(jnp.arange(v.shape[1]), v.shape[:2])
    frequencies = 0.1 ** np.arange(v.shape[-1] // 2)
    return q, k, _rotate(v, positions, frequencies), mask, options


def _restarting(tokens, **arguments):
    """Positions start at zero in every call, whatever was read before."""
    context, cache = _make_context(tokens, **arguments)
    start = context.positions[:, :1]
    wrong = dataclasses.replace(context, positions=context.positions - start)
    return wrong, cache


def _counting_padding(tokens, **arguments):
    """Padding takes up positions."""
    if arguments.get("positions") is None and arguments.get("cache") is None:
        arguments["positions"] = jnp.broadcast_to(
            jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape
        )
    return _make_context(tokens, **arguments)


def _ignoring_segments(tokens, **arguments):
    arguments["segment_ids"] = None
    return _make_context(tokens, **arguments)


def _sliding_back(self, slots, keys, values):
    """A write past the end lands on the last slot, over history."""
    return _write(self, jnp.minimum(slots, self.keys.shape[2] - 1), keys, values)


def _stale_slot(self, slots, keys, values):
    """The first slot is never written."""
    return _write(self, jnp.where(slots == 0, self.keys.shape[2], slots), keys, values)


def _stale_ring(orders, lengths, window):
    """The first slot of a ring keeps the first token that it was given."""
    slots = _ring_slots(orders, lengths, window)
    return jnp.where((slots == 0) & (orders > 0), window, slots)


def _short_ring(orders, lengths, window):
    """A call adds fewer tokens to a ring than a window later sees."""
    kept = orders >= lengths[:, None] - (window - 2)
    return jnp.where(kept, orders % window, window)


def _misread_ring(lengths, window):
    """The slots of a ring are taken for those of the tokens before."""
    return _ring_orders(jnp.maximum(lengths - 1, 0), window)


def _neighbours_scale(self, dtype):
    """Each token is read by the scale of the one before."""
    scales = jnp.roll(self.scales, 1, axis=1)
    return (self.numbers.astype(jnp.float32) * scales[..., None]).astype(dtype)


def _one_scale(cls, x):
    """The scale of a head serves all heads of its token; the rest is cut off."""
    scales = jnp.abs(x[..., :1, :]).max(axis=-1) / 127  # [B, T, 1]
    numbers = jnp.clip(jnp.round(x / scales[..., None]), -127, 127)
    return cls(numbers.astype(jnp.int8), jnp.broadcast_to(scales, x.shape[:-1]))


def _first_rows(self, indices):
    """The rows of a cache stay in their order, whichever are asked for."""
    return _rows(self, range(len(indices)))


def _remembering(self, lengths):
    """Nothing is rolled back."""
    return self


def _shortened(self, batch_size, max_length):
    """What follows a prefix is written over its last token."""
    cache = _prefix_rows(self, batch_size, max_length)
    return dataclasses.replace(cache, lengths=cache.lengths - 1)


def _untied(self, x, embed):
    """The output matrix is one of its own, though the config ties it."""
    matrix = jnp.roll(embed.table, 1, axis=0)
    return jnp.einsum("btd,vd->btv", x, matrix, preferred_element_type=jnp.float32)


def _clamping(self, ids, dtype):
    """An id out of range is the nearest one in range."""
    return jnp.take(self.table, ids, axis=0, mode="clip").astype(dtype)


_CONTEXT = (language_model, "make_context")
_WRITE = (cache_room.LayerCache, "write")
_RING = (cache_room.RingCache,)

MUTANTS: dict[str, Mutant] = {
    "tile for repeat": Mutant("grouped", ("reference",), _attention(_tile)),
    "a group shares the wrong head": Mutant(
        "grouped", ("reference",), _attention(_wrong_group)
    ),
    "mask sees the next token": Mutant(
        "plain", ("causality", "jacobian", "reference"), _attention(_sees_next)
    ),
    "mask misses the token itself": Mutant(
        "plain", ("reference",), _attention(_misses_self)
    ),
    "mask transposed": Mutant(
        "plain", ("causality", "jacobian", "reference"), _attention(_transposed)
    ),
    "scale missing": Mutant("plain", ("reference",), _attention(_unscaled)),
    "softmax in bfloat16": Mutant(
        "plain",
        ("reference",),
        ((attention_op, "_exponentials", _coarse_softmax),),
    ),
    "keys and values swapped": Mutant("plain", ("reference",), _attention(_swapped)),
    "rotary on values": Mutant(
        "plain", ("reference", "packing"), _attention(_rotated_values)
    ),
    "positions restart after prefill": Mutant(
        "learned", ("chunks", "ragged chunks"), ((*_CONTEXT, _restarting),)
    ),
    "rotary positions restart after prefill": Mutant(
        "plain", ("chunks", "ragged chunks"), ((*_CONTEXT, _restarting),)
    ),
    "padding counts as a position": Mutant(
        "learned", ("padding",), ((*_CONTEXT, _counting_padding),)
    ),
    "segments see each other": Mutant(
        "plain", ("packing", "segregation"), ((*_CONTEXT, _ignoring_segments),)
    ),
    "a full cache slides back over history": Mutant(
        "plain", ("overflow",), ((*_WRITE, _sliding_back),)
    ),
    "a stale slot in the cache": Mutant(
        "plain", ("chunks", "ragged chunks"), ((*_WRITE, _stale_slot),)
    ),
    "a stale slot in a ring": Mutant(
        None,
        ("chunks", "ragged chunks", "overflow"),
        ((*_RING, "slots", staticmethod(_stale_ring)),),
        "ring, every layer",
    ),
    "a stale slot in the ring of one layer": Mutant(
        None,
        ("chunks", "ragged chunks"),
        ((*_RING, "slots", staticmethod(_stale_ring)),),
        "ring, one layer of two",
    ),
    "a ring forgets the last token of its window": Mutant(
        None,
        ("chunks",),
        ((*_RING, "slots", staticmethod(_short_ring)),),
        "ring, one layer of two",
    ),
    "a ring takes a token for its neighbour": Mutant(
        None,
        ("chunks", "packed chunks"),
        ((*_RING, "orders", staticmethod(_misread_ring)),),
        "ring, one layer of two",
    ),
    "int8 by the scale of another token": Mutant(
        None,
        ("chunks",),
        ((cache_room.Int8Array, "astype", _neighbours_scale),),
        "int8",
    ),
    "int8 by the scale of another head": Mutant(
        None,
        ("chunks",),
        ((cache_room.Int8Array, "of", classmethod(_one_scale)),),
        "int8",
    ),
    "rows of a cache in the wrong order": Mutant(
        "plain", ("rows",), ((cache_room.KVCache, "rows", _first_rows),)
    ),
    "a cache does not roll back": Mutant(
        "plain", ("roll back",), ((cache_room.KVCache, "rolled_back", _remembering),)
    ),
    "a prefix loses its last token": Mutant(
        "plain", ("prefix",), ((Prefix, "rows", _shortened),)
    ),
    "output matrix not tied": Mutant(
        "plain",
        ("reference", "relabelling"),
        ((language_model.DecoderLM, "_logits", _untied),),
    ),
    "ids out of range clamp": Mutant(
        "plain",
        ("no silent ids",),
        ((language_model.Embed, "__call__", _clamping),),
    ),
}

ATTENTION_MUTANTS: dict[str, tuple[tuple[str, ...], Callable[..., jax.Array]]] = {
    "tile for repeat": (
        ("repeat", "definition", "jax.nn", "shared gradients"),
        lambda q, k, v, mask: _attend(*_tile(q, k, v, mask, {})[:4]),
    ),
    "a group shares the wrong head": (
        ("definition", "jax.nn"),
        lambda q, k, v, mask: _attend(*_wrong_group(q, k, v, mask, {})[:4]),
    ),
    "scale missing": (
        ("definition", "jax.nn", "hk.MultiHeadAttention"),
        lambda q, k, v, mask: _attend(q, k, v, mask, scale=1.0),
    ),
    "mask turned around": (
        ("definition", "jax.nn", "hk.MultiHeadAttention"),
        lambda q, k, v, mask: _attend(
            q, k, v, None if mask is None else mask[..., ::-1]
        ),
    ),
    "mask ignored": (
        ("definition", "jax.nn", "hk.MultiHeadAttention", "convexity"),
        lambda q, k, v, mask: _attend(q, k, v, None),
    ),
    "the mean of what is forbidden": (
        ("empty row",),
        lambda q, k, v, mask: _with_exponentials(_mean_of_forbidden, q, k, v, mask),
    ),
    "softmax in bfloat16": (
        ("definition", "jax.nn"),
        lambda q, k, v, mask: _with_exponentials(_coarse_softmax, q, k, v, mask),
    ),
    "logits in float16": (
        ("float16",),
        lambda q, k, v, mask: jnp.einsum(
            "bnts,bsv->btnv",
            jax.nn.softmax(jnp.einsum("btnh,bsh->bnts", q, k[:, :, 0]), axis=-1),
            v[:, :, 0],
        ),
    ),
}


def _with_exponentials(wrong, q, k, v, mask):
    if mask is None:
        return _attend(q, k, v, mask)
    with mock.patch.object(attention_op, "_exponentials", wrong):
        return _attend(q, k, v, mask)
