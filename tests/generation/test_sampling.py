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
from haiku_mqa.generation.choosing import choose, filtered
from haiku_mqa.generation.dials import Dials

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
    "min_p": Sampling(min_p=0.2),
    "typical": Sampling(typical_p=0.6),
    "every": Sampling(temperature=1.5, top_k=6, top_p=0.95, min_p=0.1, typical_p=0.8),
}
GREEDY = Sampling(temperature=0.0)

distinct_logits = st.integers(0, 2**32 - 1).map(
    lambda seed: np.float32(2 * np.random.default_rng(seed).standard_normal(V))
)


def _probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Each filter after the other, in float64 and in words of one syllable."""
    scaled = np.asarray(logits, np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k]
    weights = np.exp(scaled - scaled.max())
    share = weights[order] / weights[order].sum()
    before = np.cumsum(share) - share
    kept = order[before < (1.0 if sampling.top_p is None else sampling.top_p)]
    kept = kept[weights[kept] >= (sampling.min_p or 0.0) * weights.max()]
    share = weights[kept] / weights[kept].sum()
    surprise = np.abs(-np.log(share) - (-share * np.log(share)).sum())
    nearest = np.argsort(surprise, kind="stable")
    before = np.cumsum(share[nearest]) - share[nearest]
    kept = kept[nearest[before < (sampling.typical_p or 1.0)]]
    probabilities = np.zeros(len(logits))
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


def _one(sampling: Sampling) -> Dials:
    """Returns dials that serve every row."""
    return Dials.of([sampling], V)


def _tokens(logits, sampling: Sampling, rngs, **options) -> list[int]:
    return _choose(logits, _one(sampling), rngs, **options)[0].tolist()


_filtered = jax.jit(filtered)
_choose = jax.jit(choose)


def _log_probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    kept = _filtered(jnp.asarray(logits)[None], _one(sampling))
    return np.asarray(jax.nn.log_softmax(kept, axis=-1))[0]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_draws_follow_the_exact_probabilities(name):
    expected = _probabilities(LOGITS, SAMPLINGS[name])
    rngs = jax.random.split(jax.random.key(17), DRAWS)
    logits = jnp.broadcast_to(jnp.asarray(LOGITS), (DRAWS, V))
    tokens = np.asarray(_choose(logits, _one(SAMPLINGS[name]), rngs)[0])
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
    greedy = Sampling(temperature=0.0, top_k=2)
    rngs = jax.random.split(jax.random.key(seed), 1)
    for given_rngs in (None, rngs):
        token = _tokens(jnp.asarray(logits)[None], greedy, given_rngs)
        assert token == [int(logits.argmax())]


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 0.01])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_low_temperature_is_greedy_however_large_the_logits(temperature, scale):
    logits = scale * jnp.asarray([[-1.0, 0.0, 1.0, 0.5]])
    for top_p in (None, 0.9):
        sampling = Sampling(temperature=temperature, top_p=top_p)
        rngs = jax.random.split(jax.random.key(0), 1)
        assert _tokens(logits, sampling, rngs) == [2]


@pytest.mark.parametrize("name", [*SAMPLINGS, "greedy"])
@pytest.mark.parametrize("broken", [[3], list(range(V))])
def test_nan_logits_choose_no_token(name, broken):
    sampling = SAMPLINGS.get(name, GREEDY)
    logits = jnp.stack([jnp.asarray(LOGITS)] * 2)
    logits = logits.at[1, jnp.asarray(broken)].set(jnp.nan)
    rngs = jax.random.split(jax.random.key(0), 2)
    tokens = _tokens(logits, sampling, rngs)
    assert tokens[0] in range(V)
    assert tokens[1] == -1


@pytest.mark.parametrize("name", SAMPLINGS)
def test_forbidden_tokens_are_never_chosen(name):
    logits = jnp.full((500, V), -jnp.inf).at[:, 5].set(0.0)
    rngs = jax.random.split(jax.random.key(0), 500)
    assert set(_tokens(logits, SAMPLINGS[name], rngs)) == {5}


def test_a_row_depends_on_its_own_logits_and_key_alone():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, V)), jnp.float32)
    rngs = jax.random.split(jax.random.key(0), 6)
    together = _tokens(logits, SAMPLINGS["all"], rngs)
    order = np.array([3, 1, 5, 0, 4, 2])
    turned = _tokens(logits[order], SAMPLINGS["all"], rngs[order])
    assert turned == [together[row] for row in order]
    for row in range(6):
        one = slice(row, row + 1)
        assert _tokens(logits[one], SAMPLINGS["all"], rngs[one]) == [together[row]]


def test_equal_keys_and_logits_choose_alike_and_other_keys_do_not():
    logits = jnp.zeros((2, 1000))
    rng = jax.random.key(0)
    same = _tokens(logits, Sampling(), jnp.stack([rng, rng]))
    other = _tokens(logits, Sampling(), jax.random.split(rng, 2))
    assert same[0] == same[1]
    assert other[0] != other[1]


@pytest.mark.parametrize("value", [-1.0, -1e-9, 1e-6, math.inf, -math.inf, math.nan])
def test_sampling_refuses_a_temperature_that_is_none(value):
    with pytest.raises(ValueError, match="temperature must be 0 or a number"):
        Sampling(temperature=value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
def test_sampling_refuses_a_top_k_that_is_no_whole_number(value):
    with pytest.raises(ValueError, match="top_k must be a whole number >= 1, got"):
        Sampling(top_k=value)


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
@pytest.mark.parametrize("value", [0, -0.1, 1.01, math.nan, "1"])
def test_sampling_refuses_a_share_that_is_none(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\], got"):
        Sampling(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, "0"])
def test_sampling_refuses_a_min_p_that_is_no_share(value):
    with pytest.raises(ValueError, match=r"min_p must be in \[0, 1\], got"):
        Sampling(min_p=value)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, None])
def test_sampling_refuses_a_repetition_penalty_that_is_not_above_zero(value):
    with pytest.raises(ValueError, match="repetition_penalty must be a number > 0"):
        Sampling(repetition_penalty=value)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [math.inf, math.nan, "1", None])
def test_sampling_refuses_a_penalty_that_is_no_number(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number, got"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("logit_bias", "message"),
    [
        ([1], r"logit_bias must map token ids .* got \[1\]"),
        ({-1: 0.0}, "logit_bias must be a whole number >= 0, got -1"),
        ({"a": 0.0}, "logit_bias must be a whole number >= 0, got 'a'"),
        ({3: math.inf}, r"logit_bias\[3\] must be a number, or -inf .* got inf"),
        ({3: math.nan}, r"logit_bias\[3\] must be a number, or -inf .* got nan"),
        ({3: "1"}, r"logit_bias\[3\] must be a number, or -inf .* got '1'"),
    ],
)
def test_sampling_refuses_a_bias_that_is_none(logit_bias, message):
    with pytest.raises(ValueError, match=message):
        Sampling(logit_bias=logit_bias)


def test_sampling_keeps_its_bias_whatever_becomes_of_the_mapping():
    bias = {3: 1.0}
    sampling = Sampling(logit_bias=bias)
    bias[3] = 2.0
    assert sampling == Sampling(logit_bias={3: 1.0})
    assert hash(sampling) == hash(Sampling(logit_bias={3: 1.0}))
    assert sampling != Sampling(logit_bias={3: 2.0})


@pytest.mark.parity
@pytest.mark.parametrize("name", SAMPLINGS)
def test_filters_are_those_of_transformers(name):
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    sampling = SAMPLINGS[name]
    warpers = LogitsProcessorList()  # in the order of transformers' own generate
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p is not None:
        warpers.append(TypicalLogitsWarper(sampling.typical_p))
    logits = np.random.default_rng(0).standard_normal((50, 1000)).astype(np.float32)
    theirs = warpers(None, torch.tensor(4 * logits)).log_softmax(-1).numpy()
    kept = filtered(jnp.asarray(4 * logits), Dials.of([sampling], 1000))
    ours = np.asarray(jax.nn.log_softmax(kept, axis=-1))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, atol=LOG_PROBABILITY)
