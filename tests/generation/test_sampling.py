from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from haiku_mqa import Sampling
from haiku_mqa.generation.sampling import Dials, choose, filtered

DRAWS = 20_000
LEAST_P_VALUE = 1e-3  # of the chi-squared test; the seed is fixed
LOG_PROBABILITY = 1e-5

V = 8
LOGITS = np.array([1.5, -0.5, 0.25, 2.0, -3.0, 0.0, 1.0, -1.25], np.float32)
SAMPLINGS = {
    "plain": Sampling(),
    "cold": Sampling(temperature=0.5),
    "hot": Sampling(temperature=3.0),
    "top_k": Sampling(top_k=3),
    "top_p": Sampling(top_p=0.7),
    "all": Sampling(temperature=0.8, top_k=5, top_p=0.85),
    "one": Sampling(top_k=1),
    "least": Sampling(top_p=1e-6),
    "whole": Sampling(top_k=V, top_p=1.0),
}

distinct_logits = st.integers(0, 2**32 - 1).map(
    lambda seed: np.float32(2 * np.random.default_rng(seed).standard_normal(V))
)


def _probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, then top-k, then top-p, in float64 and in words of one syllable."""
    scaled = np.asarray(logits, np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k]
    weights = np.exp(scaled - scaled.max())
    share = weights[order] / weights[order].sum()
    before = np.cumsum(share) - share
    kept = order[before < (1.0 if sampling.top_p is None else sampling.top_p)]
    probabilities = np.zeros(len(logits))
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


def _log_probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    kept = filtered(jnp.asarray(logits)[None], Dials.of(sampling))
    return np.asarray(jax.nn.log_softmax(kept, axis=-1))[0]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_draws_follow_the_exact_probabilities(name):
    expected = _probabilities(LOGITS, SAMPLINGS[name])
    rngs = jax.random.split(jax.random.key(17), DRAWS)
    logits = jnp.broadcast_to(jnp.asarray(LOGITS), (DRAWS, V))
    tokens = np.asarray(jax.jit(choose)(logits, Dials.of(SAMPLINGS[name]), rngs))
    counts = np.bincount(tokens, minlength=V)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() > 1:
        test = chisquare(counts[possible], DRAWS * expected[possible])
        assert test.pvalue > LEAST_P_VALUE


@pytest.mark.parametrize("name", SAMPLINGS)
@given(logits=distinct_logits)
def test_filters_leave_the_exact_probabilities(name, logits):
    expected = _probabilities(logits, SAMPLINGS[name])
    got = _log_probabilities(logits, SAMPLINGS[name])
    np.testing.assert_array_equal(np.isfinite(got), expected > 0)
    possible = expected > 0
    np.testing.assert_allclose(
        got[possible], np.log(expected[possible]), atol=LOG_PROBABILITY
    )


@given(logits=distinct_logits, top_k=st.integers(1, 2 * V))
def test_top_k_keeps_the_k_likeliest(logits, top_k):
    kept = np.isfinite(_log_probabilities(logits, Sampling(top_k=top_k)))
    expected = np.zeros(V, bool)
    expected[np.argsort(-logits)[:top_k]] = True
    np.testing.assert_array_equal(kept, expected)


@given(logits=distinct_logits, top_p=st.floats(1e-3, 1.0))
def test_top_p_keeps_the_fewest_that_reach_it(logits, top_p):
    kept = np.isfinite(_log_probabilities(logits, Sampling(top_p=top_p)))
    share = np.exp(np.float64(logits))
    share = share / share.sum()
    tolerance = 1e-6  # of float32 sums, where top_p falls on a border
    assert share[kept].sum() >= top_p - tolerance
    assert share[kept].sum() - share[kept].min() < top_p + tolerance
    assert share[kept].min() > share[~kept].max(initial=0)


def test_top_p_is_taken_of_what_top_k_left():
    # Of three equal tokens and one tail, top-k makes each a third and not 0.3.
    logits = np.log(np.array([0.3001, 0.3, 0.2999, 0.1001], np.float32))
    kept = _log_probabilities(logits, Sampling(top_k=3, top_p=0.66))
    assert np.isfinite(kept).tolist() == [True, True, False, False]
    alone = _log_probabilities(logits, Sampling(top_p=0.66))
    assert np.isfinite(alone).tolist() == [True, True, True, False]


def test_equal_logits_are_kept_together():
    logits = np.array([1.0, 1.0, 0.0, 1.0], np.float32)
    assert np.isfinite(_log_probabilities(logits, Sampling(top_k=2))).sum() == 3


@given(logits=distinct_logits, seed=st.integers(0, 2**32 - 1))
def test_greedy_takes_the_likeliest_and_needs_no_rng(logits, seed):
    greedy = Dials.of(Sampling(temperature=0.0, top_k=2))
    rngs = jax.random.split(jax.random.key(seed), 1)
    for given_rngs in (None, rngs):
        token = choose(jnp.asarray(logits)[None], greedy, given_rngs)
        assert token.tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 0.01])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_low_temperature_is_greedy_however_large_the_logits(temperature, scale):
    logits = scale * jnp.asarray([[-1.0, 0.0, 1.0, 0.5]])
    for top_p in (None, 0.9):
        dials = Dials.of(Sampling(temperature=temperature, top_p=top_p))
        rngs = jax.random.split(jax.random.key(0), 1)
        assert choose(logits, dials, rngs).tolist() == [2]


@pytest.mark.parametrize("name", [*SAMPLINGS, "greedy"])
@pytest.mark.parametrize("broken", [[3], list(range(V))])
def test_nan_logits_choose_no_token(name, broken):
    sampling = SAMPLINGS.get(name, Sampling(temperature=0.0))
    logits = jnp.stack([jnp.asarray(LOGITS)] * 2)
    logits = logits.at[1, jnp.asarray(broken)].set(jnp.nan)
    rngs = jax.random.split(jax.random.key(0), 2)
    tokens = choose(logits, Dials.of(sampling), rngs).tolist()
    assert tokens[0] in range(V)
    assert tokens[1] == -1


@pytest.mark.parametrize("name", SAMPLINGS)
def test_forbidden_tokens_are_never_chosen(name):
    logits = jnp.full((500, V), -jnp.inf).at[:, 5].set(0.0)
    rngs = jax.random.split(jax.random.key(0), 500)
    assert set(choose(logits, Dials.of(SAMPLINGS[name]), rngs).tolist()) == {5}


def test_a_row_depends_on_its_own_logits_and_key_alone():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, V)), jnp.float32)
    rngs = jax.random.split(jax.random.key(0), 6)
    dials = Dials.of(SAMPLINGS["all"])
    together = choose(logits, dials, rngs).tolist()
    order = np.array([3, 1, 5, 0, 4, 2])
    assert choose(logits[order], dials, rngs[order]).tolist() == [
        together[row] for row in order
    ]
    for row in range(6):
        alone = choose(logits[row : row + 1], dials, rngs[row : row + 1])
        assert alone.tolist() == [together[row]]


def test_equal_keys_and_logits_choose_alike_and_other_keys_do_not():
    logits = jnp.zeros((2, 1000))
    dials = Dials.of(Sampling())
    rng = jax.random.key(0)
    same = choose(logits, dials, jnp.stack([rng, rng])).tolist()
    other = choose(logits, dials, jax.random.split(rng, 2)).tolist()
    assert same[0] == same[1]
    assert other[0] != other[1]


def test_dials_that_are_off_cost_nothing_and_others_are_arrays():
    assert Dials.of(Sampling(temperature=0.0, top_k=3)) == Dials(None, None, None)
    assert Dials.of(Sampling()).top_k is None
    assert all(isinstance(dial, jax.Array) for dial in Dials.of(SAMPLINGS["all"]))


@pytest.mark.parametrize("value", [-1.0, -1e-9, 1e-6, math.inf, -math.inf, math.nan])
def test_sampling_refuses_a_temperature_that_is_none(value):
    with pytest.raises(ValueError, match="temperature must be 0 or a number"):
        Sampling(temperature=value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
def test_sampling_refuses_a_top_k_that_is_no_whole_number(value):
    with pytest.raises(ValueError, match="top_k must be a whole number >= 1, got"):
        Sampling(top_k=value)


@pytest.mark.parametrize("value", [0, -0.1, 1.01, math.nan])
def test_sampling_refuses_a_top_p_that_is_no_share(value):
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got"):
        Sampling(top_p=value)


@pytest.mark.parity
@pytest.mark.parametrize("name", SAMPLINGS)
def test_filters_are_those_of_transformers(name):
    import torch
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    sampling = SAMPLINGS[name]
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    logits = np.random.default_rng(0).standard_normal((50, 1000)).astype(np.float32)
    theirs = warpers(None, torch.tensor(4 * logits)).log_softmax(-1).numpy()
    kept = filtered(jnp.asarray(4 * logits), Dials.of(sampling))
    ours = np.asarray(jax.nn.log_softmax(kept, axis=-1))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, atol=LOG_PROBABILITY)
