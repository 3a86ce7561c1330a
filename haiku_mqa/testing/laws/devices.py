"""Devices: a mesh changes where numbers lie, and nothing else."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from haiku_mqa.generation import generate
from haiku_mqa.model import Params
from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import CLOSE, gap, only, seeds
from haiku_mqa.testing.sharded_subject import ShardedSubject

PROMPT, NEW = 5, 6  # tokens
# Of logits in int8: what is multiplied is rounded to 15 bits, by the largest of a row.
ROUNDED = 5e-3


def _drawn(subject: ShardedSubject, seed: int) -> float:
    over, plain = (
        subject.drawn(model, seed) for model in (subject.over, subject.plain)
    )
    return _furthest(over, plain)


def _logits(subject: ShardedSubject, seed: int) -> float:
    tokens = subject.tokens(seed)
    got = subject.logits(subject.over, subject.placed, tokens)
    return gap(got, subject.logits(subject.plain, subject.params, tokens))


def _memory(subject: ShardedSubject, seed: int) -> float:
    return _read(subject, seed, subject.placed, subject.params)


def _memory_in_int8(subject: ShardedSubject, seed: int) -> float:
    params, placed = subject.quantized
    return _read(subject, seed, placed, params)


def _read(subject: ShardedSubject, seed: int, placed: Params, params: Params) -> float:
    tokens = subject.tokens(seed, PROMPT + 2)
    got = subject.read(subject.over, placed, tokens, PROMPT)
    return gap(got, subject.read(subject.plain, params, tokens, PROMPT))


def _gradients(subject: ShardedSubject, seed: int) -> float:
    batch = subject.batch(seed)
    got = subject.gradients(subject.over, subject.placed, batch)
    return _furthest(got, subject.gradients(subject.plain, subject.params, batch))


def _training(subject: ShardedSubject, case: tuple[int, int]) -> float:
    batches = [subject.batch(seed) for seed in case]
    got = subject.trained(subject.over, subject.placed, batches)
    return _furthest(got, subject.trained(subject.plain, subject.params, batches))


def _greedy(subject: ShardedSubject, seed: int) -> float:
    return _chosen(subject, seed, subject.placed, subject.params)


def _greedy_in_int8(subject: ShardedSubject, seed: int) -> float:
    params, placed = subject.quantized
    return _chosen(subject, seed, placed, params)


def _chosen(
    subject: ShardedSubject, seed: int, placed: Params, params: Params
) -> float:
    """Returns by how much one device thinks less of what several have chosen."""
    prompts = subject.tokens(seed, PROMPT)
    result = generate(subject.over, placed, prompts.tolist(), max_new_tokens=NEW)
    chosen = np.asarray(result.tokens)
    text = np.concatenate([prompts, chosen], axis=1)
    logits = subject.read(subject.plain, params, text, PROMPT)[:, PROMPT - 1 : -1]
    scores = np.take_along_axis(logits, chosen[..., None], axis=-1)
    return gap(logits.max(axis=-1, keepdims=True), scores)


def _furthest(got: Any, wanted: Any) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(gap(a, b) for a, b in pairs)


SHARDING_LAWS: tuple[Law, ...] = (
    Law(
        name="drawn",
        statement="Parameters drawn over the devices are those drawn on one.",
        tolerance=0,
        cases=only(seeds),
        error=_drawn,
        most=1,  # each is compiled anew
    ),
    Law(
        name="logits",
        statement="Logits are those of one device.",
        tolerance=CLOSE,
        cases=only(seeds),
        error=_logits,
    ),
    Law(
        name="memory",
        statement="So they are where tokens are read with a cache over the devices.",
        tolerance=CLOSE,
        cases=only(seeds),
        error=_memory,
    ),
    Law(
        name="gradients",
        statement="The loss and its gradients are those of one device.",
        tolerance=CLOSE,
        cases=only(seeds),
        error=_gradients,
    ),
    Law(
        name="training",
        statement="Steps of training lead to the same parameters and moments.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, seeds)),
        error=_training,
    ),
    Law(
        name="greedy",
        statement="Generation chooses what one device would.",
        tolerance=CLOSE,
        cases=only(seeds),
        error=_greedy,
        most=5,
    ),
    Law(
        name="memory in int8",
        statement="With weights in int8, logits are those of one device.",
        tolerance=ROUNDED,
        cases=only(seeds),
        error=_memory_in_int8,
    ),
    Law(
        name="greedy in int8",
        statement="With weights in int8, generation chooses what one device would.",
        tolerance=ROUNDED,
        cases=only(seeds),
        error=_greedy_in_int8,
        most=5,
    ),
)
