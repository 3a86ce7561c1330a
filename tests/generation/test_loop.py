"""The compiled halves of generation, seen from inside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.loop import CHUNK, Settings, State, decode, prefill
from tests.models import example, example_params, example_tokens

NAME = "grouped"
LENGTHS = np.array([3, 7], np.int32)
GREEDY = Dials()


def _settings(*ends: int) -> Settings:
    return Settings(GREEDY, None, jnp.asarray(ends, jnp.int32).reshape(-1))


def _prefilled(settings: Settings) -> State:
    model = example(NAME)
    tokens, cache = example_tokens(NAME), model.init_cache(2, 48)
    return prefill(model, example_params(NAME), tokens, LENGTHS, cache, settings)


def _decoded(settings: Settings, steps: int) -> tuple[State, np.ndarray]:
    state, chosen = decode(
        example(NAME),
        example_params(NAME),
        _prefilled(settings),
        jnp.int32(steps),
        settings,
    )
    return state, np.asarray(chosen.tokens)


def test_prefill_reads_each_prompt_without_its_padding():
    state = _prefilled(_settings())
    assert state.cache.lengths.tolist() == LENGTHS.tolist()
    assert state.finished.tolist() == [False, False]


def test_prefill_takes_over_the_cache_that_it_is_given():
    model, cache = example(NAME), example(NAME).init_cache(2, 48)
    prefill(
        model, example_params(NAME), example_tokens(NAME), LENGTHS, cache, _settings()
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache.layers))


def test_decode_reads_one_token_for_each_that_it_chooses():
    state, chosen = _decoded(_settings(), 5)
    assert chosen.shape == (2, CHUNK)
    assert (chosen[:, :5] >= 0).all()
    assert (chosen[:, 5:] == -2).all()
    assert state.cache.lengths.tolist() == (LENGTHS + 5).tolist()


def _end_of_one_row(steps: int) -> tuple[int, int, int]:
    """Returns a row, a place and a token that only this row comes to, first there."""
    _, chosen = _decoded(_settings(), steps)
    first = np.asarray(_prefilled(_settings()).token)
    for row in range(2):
        others = {*chosen[1 - row, :steps], *first}
        for place in range(steps - 1):
            token = chosen[row, place]
            if token not in others and token not in chosen[row, :place]:
                return row, place, int(token)
    raise LookupError("both rows choose the same tokens; draw other parameters")


def test_finished_row_reads_and_chooses_nothing_more():
    row, place, token = _end_of_one_row(8)
    free, _ = _decoded(_settings(), place + 1)
    ended, chosen = _decoded(_settings(token), 8)
    assert chosen[row, place] == token
    assert (chosen[row, place + 1 :] == -2).all()
    assert (chosen[1 - row, :8] >= 0).all()
    lengths = ended.cache.lengths.tolist()
    assert lengths[row] == LENGTHS[row] + place + 1
    assert lengths[1 - row] == LENGTHS[1 - row] + 8
    for before, after in zip(free.cache.layers, ended.cache.layers, strict=True):
        np.testing.assert_allclose(after.keys[row], before.keys[row], atol=1e-5)
        np.testing.assert_allclose(after.values[row], before.values[row], atol=1e-5)


def test_decode_stops_where_every_row_has_finished():
    tokens = sorted({*np.asarray(_prefilled(_settings()).token).tolist()})
    state, chosen = _decoded(_settings(*tokens), 8)
    assert (chosen == -2).all()
    assert state.cache.lengths.tolist() == LENGTHS.tolist()


def test_what_nobody_asked_for_is_not_kept():
    state = _prefilled(_settings())
    assert state.counts is None
    assert state.logprob is None
    _, chosen = decode(
        example(NAME), example_params(NAME), state, jnp.int32(2), _settings()
    )
    assert chosen.logprobs is None
