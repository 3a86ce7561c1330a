"""A text that grows by turns: the answers of ``generate``, and nothing read twice."""

import jax
import numpy as np
import pytest

from haiku_mqa import DecoderConfig, Sampling, build, generate
from haiku_mqa.generation import Conversation, conversation
from tests.models import drawn_params

CONFIG = DecoderConfig(
    vocab_size=32, num_layers=1, num_heads=2, d_model=8, d_ff=8, max_length=64
)
FIRST, SECOND = [1, 2, 3, 4, 5], [6, 7, 8]


@pytest.fixture(scope="module")
def model():
    return build(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return drawn_params(model)


@pytest.fixture
def asked(monkeypatch):
    """How many tokens each turn read."""
    counts = []
    prefill = conversation.prefill

    def count(model, params, tokens, lengths, *rest):
        counts.append(int(lengths[0]))
        return prefill(model, params, tokens, lengths, *rest)

    monkeypatch.setattr(conversation, "prefill", count)
    return counts


def _said(iterator):
    return [token for tokens in iterator for token in tokens]


def _anew(model, params, text, new_tokens=6, **options):
    result = generate(model, params, [text], max_new_tokens=new_tokens, **options)
    return result.tokens[0]


@pytest.mark.parametrize("chunk", [1, 4])
def test_answers_are_those_of_the_whole_text_read_anew(model, params, asked, chunk):
    talk = Conversation(model, params)
    text = list(FIRST)
    for more in (SECOND, [9], []):
        said = _said(talk.ask(text, max_new_tokens=6, chunk=chunk))
        assert said == _anew(model, params, text)
        text += [*said, *more]
    # What was chosen last is not read yet, and then what is new.
    assert asked == [5, 4, 2]
    assert int(talk._cache.lengths[0]) == len(talk.tokens) == len(text) - 1


def test_sampled_answers_are_those_of_the_whole_text_read_anew(model, params):
    sampling = Sampling(temperature=2.0, top_k=20)
    talk = Conversation(model, params, sampling=sampling)
    text = list(FIRST)
    for seed in (1, 2):
        rng = jax.random.key(seed)
        said = _said(talk.ask(text, max_new_tokens=6, rng=rng))
        assert said == _anew(model, params, text, sampling=sampling, rng=rng)
        text += [*said, *SECOND]


def test_text_that_changed_is_read_from_there_on(model, params, asked):
    talk = Conversation(model, params)
    _said(talk.ask(FIRST, max_new_tokens=6))
    other = [1, 2, 30, 4, 5, 6, 7]
    assert _said(talk.ask(other, max_new_tokens=6)) == _anew(model, params, other)
    assert asked == [5, 5]
    same = _said(talk.ask(other, max_new_tokens=6))
    assert same == _anew(model, params, other)
    assert asked == [5, 5, 1]


def test_answer_that_nobody_listens_to_is_kept_as_far_as_it_came(model, params, asked):
    talk = Conversation(model, params)
    answer = talk.ask(FIRST, max_new_tokens=20)
    said = next(answer) + next(answer) + next(answer)
    text = [*FIRST, *said, *SECOND]
    assert _said(talk.ask(text, max_new_tokens=6)) == _anew(model, params, text)
    assert asked == [5, 4]
    assert list(answer) == []


def test_turn_that_fails_halfway_costs_a_reading_and_no_more(
    model, params, asked, monkeypatch
):
    talk = Conversation(model, params)
    answer = talk.ask(FIRST, max_new_tokens=6)
    said = next(answer)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversation, "decode", fail)
        with pytest.raises(KeyboardInterrupt):
            next(answer)
    assert talk.tokens == []
    text = [*FIRST, *said, *SECOND]
    assert _said(talk.ask(text, max_new_tokens=6)) == _anew(model, params, text)
    assert asked == [5, len(text)]


def test_cache_grows_with_the_text_and_forgets_nothing(
    model, params, asked, monkeypatch
):
    monkeypatch.setattr(conversation, "_LEAST_ROOM", 8)
    talk = Conversation(model, params)
    text = list(FIRST)
    for _ in range(3):
        said = _said(talk.ask(text, max_new_tokens=10))
        assert said == _anew(model, params, text, 10)
        text += said
    assert talk._cache.capacity == 64
    assert asked == [5, 1, 1]


def test_end_token_ends_an_answer_and_is_not_told(model, params):
    plain = _anew(model, params, FIRST, 12)
    end = plain[4]
    before = plain[: plain.index(end)]
    talk = Conversation(model, params, end_tokens=[end])
    assert _said(talk.ask(FIRST, max_new_tokens=12, chunk=5)) == before
    text = [*FIRST, *before, end, *SECOND]
    after = _said(talk.ask(text, max_new_tokens=6))
    assert after == _anew(model, params, text, end_tokens=[end])


def test_reset_forgets_all(model, params, asked):
    talk = Conversation(model, params)
    _said(talk.ask(FIRST, max_new_tokens=3))
    talk.reset()
    assert talk.tokens == []
    _said(talk.ask(FIRST, max_new_tokens=3))
    assert asked == [5, 5]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "tokens must hold at least one token id, and is empty"),
        ([1, 32], {}, r"tokens must be from 0 to 31 \(vocab_size = 32\), got 32"),
        ([1.5], {}, "tokens must be an array of whole numbers"),
        ([1] * 64, {}, "tokens must be fewer than max_length = 64, got 64"),
        ([1] * 60, {"max_new_tokens": 5}, "max_new_tokens .* from 1 to 4, got 5"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens .* from 1 to 63, got 0"),
        ([1], {"chunk": 33}, "chunk must be a whole number from 1 to 32, got 33"),
    ],
)
def test_mistake_is_told_at_the_call(model, params, tokens, options, message):
    talk = Conversation(model, params)
    with pytest.raises(ValueError, match=message):
        talk.ask(tokens, **{"max_new_tokens": 2, **options})


def test_sampling_needs_an_rng(model, params):
    talk = Conversation(model, params, sampling=Sampling(temperature=1.0))
    with pytest.raises(ValueError, match="rng must be given where temperature"):
        talk.ask([1], max_new_tokens=2)


def test_end_token_out_of_range_is_refused(model, params):
    with pytest.raises(ValueError, match="end_tokens must be from 0 to 31"):
        Conversation(model, params, end_tokens=[99])


def test_nan_is_told(model, params):
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    with pytest.raises(FloatingPointError, match="the logits are NaN"):
        _said(Conversation(model, broken).ask([1], max_new_tokens=2))
