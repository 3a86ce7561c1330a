"""Rows that each choose in their own way, and what penalties count."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa import Sampling
from haiku_mqa.generation.choosing import choose, filtered
from haiku_mqa.generation.dials import Counts, Dials

ROWS, V = 3, 12
SUM = 1e-5  # of float32 probabilities
ULPS = 1e-6  # relative: another program may divide by another instruction
LOGPROB = 1e-5

GREEDY = Sampling(temperature=0.0)
NEUTRAL = Sampling(
    top_k=V,
    top_p=1.0,
    min_p=0.0,
    typical_p=1.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    logit_bias={},
)

shares = st.none() | st.floats(0.01, 1.0)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 2 * V),
    top_p=shares,
    min_p=shares,
    typical_p=shares,
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.7]),
    presence_penalty=st.sampled_from([0.0, 0.6, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.none()
    | st.dictionaries(st.integers(0, V - 1), st.sampled_from([-math.inf, 2.0, -1.5])),
).filter(lambda s: list((s.logit_bias or {}).values()).count(-math.inf) < V)
rows_of_samplings = st.lists(samplings, min_size=ROWS, max_size=ROWS)
seeds = st.integers(0, 2**32 - 1)


def _logits(seed: int) -> jax.Array:
    draw = np.random.default_rng(seed)
    return jnp.asarray(2 * draw.standard_normal((ROWS, V)), jnp.float32)


def _counts(seed: int) -> Counts:
    draw = np.random.default_rng(seed)
    prompt = jnp.asarray(draw.random((ROWS, V)) < 0.3)
    return Counts(prompt, jnp.asarray(draw.poisson(0.5, (ROWS, V)), jnp.int32))


_filtered = jax.jit(filtered)
_choose = jax.jit(choose)


def _row(tree, row: int):
    return jax.tree.map(lambda leaf: leaf[row : row + 1], tree)


@given(rows=rows_of_samplings, seed=seeds)
def test_a_filtered_distribution_sums_to_one(rows, seed):
    kept = _filtered(_logits(seed), Dials.all_on(rows, V), _counts(seed))
    sums = jax.nn.softmax(kept, axis=-1).sum(axis=-1)
    np.testing.assert_allclose(sums, 1.0, atol=SUM)


# Some of the many sets of dials that rows can have on: each is a program of its own.
FEW_ON = {
    "greedy": [GREEDY] * ROWS,
    "plain": [Sampling(), GREEDY, Sampling(temperature=0.3)],
    "filters": [Sampling(top_k=3), Sampling(top_p=0.6, min_p=0.2), GREEDY],
    "typical": [Sampling(typical_p=0.4), Sampling(), Sampling(typical_p=0.8)],
    "bias": [Sampling(logit_bias={3: 2.0, 5: -math.inf, 0: 1.0}), GREEDY, Sampling()],
    "penalties": [
        Sampling(temperature=0.0, repetition_penalty=1.5),
        Sampling(frequency_penalty=0.5),
        Sampling(presence_penalty=-0.5, top_k=4),
    ],
}


@pytest.mark.parametrize("name", FEW_ON)
@settings(max_examples=5)
@given(seed=seeds)
def test_dials_that_are_all_on_say_what_those_of_rows_say(name, seed):
    logits, counts = _logits(seed), _counts(seed)
    dials = Dials.of(FEW_ON[name], V)
    np.testing.assert_allclose(
        _filtered(logits, dials, counts if dials.needs_counts else None),
        _filtered(logits, Dials.all_on(FEW_ON[name], V), counts),
        rtol=ULPS,
    )


@given(rows=rows_of_samplings, seed=seeds)
def test_a_row_is_filtered_and_drawn_as_it_is_alone(rows, seed):
    logits, counts, dials = _logits(seed), _counts(seed), Dials.all_on(rows, V)
    rngs = jax.random.split(jax.random.key(seed), ROWS)
    together = _filtered(logits, dials, counts)
    tokens, logprobs = _choose(logits, dials, rngs, counts)
    for row in range(ROWS):
        mine = [_row(tree, row) for tree in (logits, dials, rngs, counts)]
        alone = _filtered(mine[0], mine[1], mine[3])
        np.testing.assert_allclose(alone, together[row : row + 1], rtol=ULPS)
        token, logprob = _choose(*mine)
        assert token[0] == tokens[row]
        np.testing.assert_allclose(logprob[0], logprobs[row], atol=LOGPROB)


@given(
    seed=seeds,
    filters=st.fixed_dictionaries(
        {"top_k": st.none() | st.integers(1, V), "top_p": shares, "min_p": shares}
    ),
)
def test_top_k_top_p_and_min_p_keep_the_likeliest(seed, filters):
    logits = _logits(seed)
    dials = Dials.all_on([Sampling(**filters)] * ROWS, V)
    kept = np.isfinite(_filtered(logits, dials, _counts(seed)))
    for row, mine in zip(np.asarray(logits), kept, strict=True):
        assert mine.any()
        assert row[mine].min() > row[~mine].max(initial=-np.inf)


@given(seed=seeds)
def test_neutral_numbers_change_nothing(seed):
    logits = _logits(seed)
    neutral = _filtered(logits, Dials.all_on([NEUTRAL] * ROWS, V), _counts(seed))
    np.testing.assert_array_equal(neutral, logits - logits.max(-1, keepdims=True))


def test_rounding_takes_no_token_of_a_large_vocabulary_out_of_play():
    logits = jnp.zeros((1, 100_000))
    kept = filtered(logits, Dials.all_on([NEUTRAL], 100_000), _nothing(100_000))
    assert jnp.isfinite(kept).all()


def _nothing(vocab_size: int) -> Counts:
    none = jnp.zeros((1, vocab_size), jnp.int32)
    return Counts(none > 0, none)


@given(rows=rows_of_samplings, seed=seeds)
def test_a_greedy_row_takes_the_likeliest_whatever_its_neighbours_do(rows, seed):
    logits, rngs = _logits(seed), jax.random.split(jax.random.key(seed), ROWS)
    dials = Dials.all_on([GREEDY, *rows[1:]], V)
    token, _ = _choose(logits, dials, rngs, _counts(seed))
    assert token[0] == logits[0].argmax()
    kept = _filtered(logits, dials, _counts(seed))
    assert np.isfinite(kept[0]).nonzero()[0].tolist() == [logits[0].argmax()]


@given(seed=seeds)
def test_log_probabilities_are_the_models_own_whatever_the_dials(seed):
    logits, rngs = _logits(seed), jax.random.split(jax.random.key(seed), ROWS)
    hot = Sampling(temperature=3.0, top_k=4, presence_penalty=1.0, logit_bias={2: 3.0})
    token, logprob = _choose(logits, Dials.of([hot] * ROWS, V), rngs, _counts(seed))
    expected = jax.nn.log_softmax(logits)[jnp.arange(ROWS), token]
    np.testing.assert_allclose(logprob, expected, atol=LOGPROB)


@given(seed=seeds, rows=rows_of_samplings)
def test_only_allowed_tokens_are_chosen(seed, rows):
    rows = [Sampling(temperature=s.temperature, top_k=s.top_k) for s in rows]
    allowed = np.zeros((ROWS, V), bool)
    allowed[np.arange(ROWS), np.random.default_rng(seed).integers(0, V, ROWS)] = True
    rngs = jax.random.split(jax.random.key(seed), ROWS)
    dials = Dials.all_on(rows, V)
    token, _ = _choose(_logits(seed), dials, rngs, _counts(seed), jnp.asarray(allowed))
    assert token.tolist() == allowed.argmax(axis=-1).tolist()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.5)])
def test_no_token_is_chosen_where_none_is_left(sampling):
    logits, rngs = _logits(0), jax.random.split(jax.random.key(0), ROWS)
    allowed = jnp.ones((ROWS, V), bool).at[1].set(False)
    token, _ = choose(logits, Dials.of([sampling] * ROWS, V), rngs, allowed=allowed)
    assert (np.asarray(token) == -1).tolist() == [False, True, False]


def test_presence_is_taken_once_and_frequency_each_time():
    logits = jnp.zeros((1, 4))
    counts = Counts(jnp.array([[True, False, False, True]]), jnp.array([[0, 1, 3, 0]]))
    fine = Sampling(temperature=1.0, presence_penalty=1.0, frequency_penalty=0.25)
    kept = filtered(logits, Dials.of([fine], 4), counts)
    assert kept.tolist() == [[0.0, -1.25, -1.75, 0.0]]


def test_repetition_counts_the_prompt_and_what_is_new():
    logits = jnp.array([[2.0, 2.0, -2.0, 4.0]])
    counts = Counts(jnp.array([[True, False, True, False]]), jnp.array([[0, 1, 0, 0]]))
    kept = filtered(logits, Dials.of([Sampling(repetition_penalty=2.0)], 4), counts)
    assert kept.tolist() == [[-3.0, -3.0, -8.0, 0.0]]


def test_greedy_choice_takes_penalties_and_bias():
    logits = jnp.array([[2.0, 1.5, 0.0]])
    counts = Counts(jnp.zeros((1, 3), bool), jnp.array([[1, 0, 0]]))
    penalized = Sampling(temperature=0.0, frequency_penalty=1.0)
    assert choose(logits, Dials.of([penalized], 3), None, counts)[0].tolist() == [1]
    biased = Sampling(temperature=0.0, logit_bias={2: 5.0})
    assert choose(logits, Dials.of([biased], 3), None)[0].tolist() == [2]


def test_counts_hold_the_prompt_without_its_padding_and_each_new_token():
    tokens = jnp.array([[1, 1, 0], [3, 2, 0]])
    counts = Counts.of(tokens, jnp.array([[1, 1, 0], [1, 0, 0]]) == 1, 4)
    assert [row.nonzero()[0].tolist() for row in counts.prompt] == [[1], [3]]
    for token in ([2, -2], [2, 0], [-1, -2]):
        counts = counts.plus(jnp.array(token))
    assert counts.generated.tolist() == [[0, 0, 2, 0], [1, 0, 0, 0]]
    assert [row.nonzero()[0].tolist() for row in counts.prompt] == [[1], [3]]


def test_a_penalty_without_counts_is_refused():
    dials = Dials.of([Sampling(presence_penalty=1.0)], V)
    with pytest.raises(ValueError, match="counts must be given where a penalty is on"):
        choose(_logits(0)[:1], dials, None)


def test_dials_that_no_row_has_on_are_left_out():
    assert Dials.of([GREEDY, Sampling(temperature=0.0, top_k=3)], V) == Dials()
    neutral = Dials.of([NEUTRAL], V)
    assert [name for name in Dials._fields if getattr(neutral, name) is not None] == [
        "temperature",
        "top_k",
    ]
    mixed = Dials.of([GREEDY, Sampling(top_p=0.5)], V)
    assert mixed.temperature.tolist() == [0.0, 1.0]
    assert mixed.top_p.tolist() == [1.0, 0.5]
    assert not mixed.needs_counts


def test_dials_that_are_all_on_have_one_shape_whatever_the_rows():
    def shapes(*rows):
        return jax.tree.map(jnp.shape, Dials.all_on(rows, V))

    busy = Sampling(top_k=3, min_p=0.1, logit_bias={1: 2.0, 3: 4.0})
    assert shapes(GREEDY, busy) == shapes(Sampling(), GREEDY)
    assert None not in shapes(GREEDY)


def test_a_bias_of_no_token_or_of_too_many_is_refused():
    with pytest.raises(ValueError, match=r"logit_bias .* from 0 to 11 .* got 12"):
        Dials.of([Sampling(logit_bias={12: 1.0})], V)
    many = Sampling(logit_bias={0: 1.0, 1: 1.0, 2: 1.0})
    with pytest.raises(ValueError, match="must hold at most 2 tokens, got 3"):
        Dials.all_on([many], V, max_biases=2)


@pytest.mark.parity
def test_penalties_and_bias_are_those_of_transformers():
    import torch
    from transformers import (
        LogitsProcessorList,
        PrefixConstrainedLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
    )

    draw = np.random.default_rng(0)
    logits = 4 * draw.standard_normal((5, 100)).astype(np.float32)
    prompt = draw.integers(0, 100, (5, 20))
    new = draw.integers(0, 100, (5, 10))
    bias = {7: 2.5, 30: -1.0}
    processors = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor([[[t], value] for t, value in bias.items()]),
            RepetitionPenaltyLogitsProcessor(1.3),
            PrefixConstrainedLogitsProcessor(lambda *_: list(range(50)), 1),
        ]
    )
    read = torch.tensor(np.concatenate([prompt, new], axis=1))
    theirs = processors(read, torch.tensor(logits)).log_softmax(-1).numpy()
    counts = Counts.of(jnp.asarray(prompt), jnp.ones((5, 20), bool), 100)
    for token in new.T:
        counts = counts.plus(jnp.asarray(token))
    dials = Dials.of([Sampling(repetition_penalty=1.3, logit_bias=bias)] * 5, 100)
    allowed = jnp.broadcast_to(jnp.arange(100) < 50, (5, 100))
    kept = filtered(jnp.asarray(logits), dials, counts, allowed)
    np.testing.assert_allclose(jax.nn.log_softmax(kept), theirs, atol=LOGPROB)
