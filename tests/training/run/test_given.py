"""Runs that begin from given parameters, as from those of converted heads."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import numpy as np
import pytest

import haiku_mqa as hm
from haiku_mqa.text import ByteTokenizer, CharacterTokenizer
from haiku_mqa.training import Corpus, OptimizerConfig
from haiku_mqa.training.run.events import Evaluated, Started, Stepped
from haiku_mqa.training.run.train import train
from tests.training.run.runs import CONFIG, CORPUS, longer, metrics_of

# Two heads, so that there is something to share.
TWO_HEADS = dataclasses.replace(CONFIG, model={**CONFIG.model, "num_kv_heads": 2})
# A step that is too long is worse than none.
HARMFUL = dataclasses.replace(
    CONFIG,
    optimizer=OptimizerConfig(
        learning_rate=10.0, warmup_steps=0, schedule="constant", total_steps=4
    ),
    average_decay=None,
)


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def trained():
    """What a multi-head run came to."""
    return train(dataclasses.replace(TWO_HEADS, seed=5), CORPUS)


@pytest.fixture(scope="module")
def converted(trained):
    """Its parameters, with one key/value head."""
    return hm.convert_heads(trained.model.config, trained.params, 1)[1]


@pytest.fixture(scope="module")
def whole(converted, tmp_path_factory):
    """The folder of a run from them that nothing stopped, and what it came to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(CONFIG, CORPUS, params=converted, out=folder)


def _crash_at(step, kind=Stepped):
    def on_event(event):
        if isinstance(event, kind) and event.step == step:
            raise Crash

    return on_event


def _equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_given_parameters_are_judged_before_the_first_step(whole, converted):
    _, result = whole
    assert result.history[0].step == 0
    told = result.history[0].validation_loss
    _, held_out = hm.training.split(CORPUS, CONFIG.data.validation)
    tokens = hm.training.encode_corpus(held_out, result.tokenizer)
    batches = hm.training.validation_batches(tokens, CONFIG.data.seq_len, 16)
    loss = hm.training.make_loss(result.model)
    sums = [loss(converted, batch, None) for batch in batches]
    total = sum(float(s.sum) for s in sums) / sum(int(s.count) for s in sums)
    assert told == pytest.approx(total, rel=1e-6)


def test_run_heals_what_conversion_lost(converted):
    config = longer(60, eval_every=60, average_decay=None)
    result = train(config, CORPUS, params=converted)
    before, after = (e for e in result.history if isinstance(e, Evaluated))
    assert after.validation_loss < before.validation_loss - 0.1


def test_run_never_comes_to_less_than_it_began_from(converted):
    result = train(HARMFUL, CORPUS, params=converted)
    losses = [e.validation_loss for e in result.history if isinstance(e, Evaluated)]
    assert losses[0] < min(losses[1:])
    _equal(result.params, converted)


def test_given_arrays_are_as_they_were(converted):
    mine = jax.tree.map(jax.numpy.array, converted)
    before = jax.tree.map(np.array, mine)
    train(CONFIG, CORPUS, params=mine)
    _equal(jax.tree.map(np.array, mine), before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_given_parameters_may_be_of_any_floating_point(converted, dtype):
    given = jax.tree.map(lambda x: np.asarray(x).astype(dtype), converted)
    result = train(HARMFUL, CORPUS, params=given)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(result.params)} == {"float32"}


@pytest.mark.parametrize(
    ("step", "kind"), [(0, Evaluated), (1, Stepped), (6, Stepped), (12, Stepped)]
)
def test_run_that_crashed_goes_on_to_the_same_bits(
    whole, converted, tmp_path, step, kind
):
    folder, result = whole
    with pytest.raises(Crash):
        train(
            CONFIG,
            CORPUS,
            params=converted,
            out=tmp_path / "run",
            on_event=_crash_at(step, kind),
        )
    # Once there is a checkpoint they need not be given again.
    again = {"params": converted} if kind is Evaluated else {}
    other = train(CONFIG, CORPUS, out=tmp_path / "run", **again)
    _equal(other.params, result.params)
    assert metrics_of(tmp_path / "run") == metrics_of(folder)


def test_run_that_has_no_checkpoint_asks_for_its_parameters(converted, tmp_path):
    with pytest.raises(Crash):
        train(
            CONFIG,
            CORPUS,
            params=converted,
            out=tmp_path / "run",
            on_event=_crash_at(0, Evaluated),
        )
    with pytest.raises(ValueError, match="began from given parameters and was stopped"):
        train(CONFIG, CORPUS, out=tmp_path / "run")


def test_run_from_other_parameters_is_another_run(whole, converted):
    folder, _ = whole
    other = jax.tree.map(lambda x: x + 1, converted)
    with pytest.raises(ValueError, match="params: not what the run in the folder"):
        train(CONFIG, CORPUS, params=other, out=folder)


def test_run_with_another_tokenizer_is_another_run(whole):
    folder, _ = whole
    tokenizer = CharacterTokenizer(CORPUS.text + "!")
    with pytest.raises(ValueError, match="tokenizer: not the one in the folder"):
        train(CONFIG, CORPUS, tokenizer=tokenizer, out=folder)


def test_given_tokenizer_reads_the_text():
    tokenizer = CharacterTokenizer(CORPUS.text + "§")
    result = train(HARMFUL, CORPUS, tokenizer=tokenizer)
    assert result.tokenizer == tokenizer
    assert result.model.config.vocab_size == tokenizer.vocab_size


def test_given_tokenizer_must_be_the_configs():
    with pytest.raises(ValueError, match=r"data\.tokenizer must be 'bytes'.*'charac"):
        train(CONFIG, CORPUS, tokenizer=ByteTokenizer())


def test_given_tokenizer_must_know_the_text():
    with pytest.raises(ValueError, match="knows only the 15 characters"):
        train(CONFIG, Corpus((CORPUS.text + "§" * 9,)), tokenizer=_tokenizer())


def _tokenizer():
    return CharacterTokenizer(CORPUS.text)


def test_parameters_of_another_shape_are_refused_and_nothing_is_written(
    trained, tmp_path
):
    with pytest.raises(ValueError, match=r"layer_0/attention/key/w has shape \[8, 8\]"):
        train(CONFIG, CORPUS, params=trained.params, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parameters_that_are_not_finite_are_refused(converted):
    broken = jax.tree.map(lambda x: x * np.nan, converted)
    with pytest.raises(ValueError, match="params must be finite"):
        train(CONFIG, CORPUS, params=broken)


def test_picture_of_a_single_point_warns_of_nothing(converted, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(Crash):
            train(
                CONFIG,
                CORPUS,
                params=converted,
                out=tmp_path / "run",
                on_event=_crash_at(1),
            )


def test_started_comes_first(converted):
    events = []
    train(HARMFUL, CORPUS, params=converted, on_event=events.append)
    assert isinstance(events[0], Started)
    assert (type(events[1]), events[1].step) == (Evaluated, 0)
