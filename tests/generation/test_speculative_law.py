"""Sampled tokens have the model's own distribution, whatever a draft proposes.

The probability of each continuation is worked out by full forwards over all of them;
thousands of rows are then sampled and counted, and counts are held to probabilities by
Pearson's chi-squared. Two mutants show that the test sees what it is meant to see.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from haiku_mqa import DecoderConfig, Sampling, build, generate
from haiku_mqa.generation import Draft, acceptance, speculate
from haiku_mqa.generation.choosing import filtered
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.speculative_loop import advance
from tests.models import drawn_params

V, NEW, ROWS = 4, 4, 8192
PROMPT = [1, 2]
UNLIKELY = 1e-4  # such a count, or one farther off, comes in fewer of the runs
SAMPLINGS = {
    "plain": Sampling(),
    "filtered": Sampling(temperature=1.5, top_k=3, top_p=0.9),
}


def _model(d_model: int):
    return build(
        DecoderConfig(
            vocab_size=V, num_layers=1, num_heads=2, d_model=d_model, d_ff=8,
            max_length=16, tie_embeddings=False,
        )
    )  # fmt: skip


MODEL, PARAMS = _model(8), drawn_params(_model(8))
DRAFT = Draft(_model(4), drawn_params(_model(4), seed=3), num_tokens=2)


def _counts(rows: list[list[int]]) -> np.ndarray:
    """Returns how often each continuation came, ``[V ** NEW]``."""
    places = np.asarray(rows) @ V ** np.arange(NEW)[::-1]
    return np.bincount(places, minlength=V**NEW)


def _probabilities(sampling: Sampling) -> np.ndarray:
    """Returns the probability of each continuation, ``[V ** NEW]``."""
    every = np.array(list(itertools.product(range(V), repeat=NEW)), np.int32)
    read = np.concatenate([np.tile(PROMPT, (len(every), 1)), every], axis=1)
    logits = MODEL.apply(PARAMS, None, read).logits[:, len(PROMPT) - 1 : -1]
    # A row of it at a time, as a batch: [V ** NEW * NEW, V].
    scores = filtered(logits.reshape(-1, V), Dials.of([sampling], V))
    chances = np.asarray(jax.nn.softmax(scores, axis=-1), np.float64)
    chances = chances.reshape(len(every), NEW, V)
    return np.take_along_axis(chances, every[..., None], axis=-1).prod(axis=(1, 2))


def _p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns how probable counts as far off as these are; 0 if any is impossible."""
    expected = probabilities * counts.sum()
    if counts[probabilities == 0].any():
        return 0.0
    rare = expected < 5  # too few for the test: they are counted together
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    some = expected > 0
    expected = expected[some] * observed[some].sum() / expected[some].sum()
    return float(chisquare(observed[some], expected).pvalue)


def _sampled(sampling: Sampling, seed: int = 0):
    return speculate(
        MODEL,
        PARAMS,
        [PROMPT] * ROWS,
        proposer=DRAFT,
        max_new_tokens=NEW,
        sampling=sampling,
        rng=jax.random.split(jax.random.key(seed), ROWS),
    )


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_sampled_tokens_have_the_models_distribution(kind):
    sampling = SAMPLINGS[kind]
    probabilities = _probabilities(sampling)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    result = _sampled(sampling)
    assert _p_value(_counts(result.tokens), probabilities) > UNLIKELY
    assert 0.2 < result.acceptance < 0.8  # both ways to a token were gone often


def test_plain_generation_is_held_to_the_same_distribution():
    rngs = jax.random.split(jax.random.key(0), ROWS)
    result = generate(
        MODEL,
        PARAMS,
        [PROMPT] * ROWS,
        max_new_tokens=NEW,
        sampling=SAMPLINGS["plain"],
        rng=rngs,
    )
    probabilities = _probabilities(SAMPLINGS["plain"])
    assert _p_value(_counts(result.tokens), probabilities) > UNLIKELY


@pytest.fixture
def planted(monkeypatch):
    """``planted(name, mutant)`` puts a mutant in the place of a function."""

    def plant(name, mutant):
        monkeypatch.setattr(acceptance, name, mutant)
        advance.clear_cache()

    yield plant
    monkeypatch.undo()
    advance.clear_cache()


MUTANTS = {
    "is_accepted": lambda uniform, wanted, offered: jnp.ones_like(wanted, bool),
    "residual": lambda wanted, offered: wanted,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_found_by_its_distribution(planted, name):
    planted(name, MUTANTS[name])
    counts = _counts(_sampled(SAMPLINGS["plain"]).tokens)
    assert _p_value(counts, _probabilities(SAMPLINGS["plain"])) < UNLIKELY
