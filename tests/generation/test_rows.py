"""What a call may ask for beside tokens: samples, log-probabilities, stops, limits."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, Sampling, build, generate, stream
from haiku_mqa.generation.loop import decode, prefill
from haiku_mqa.generation.stop import StopStrings
from haiku_mqa.text import ByteTokenizer, CharacterTokenizer
from tests.models import drawn_params

V = 29
MODEL = build(  # one layer, since each way to ask compiles programs of its own
    DecoderConfig(
        vocab_size=V, num_layers=1, num_heads=2, d_model=16, d_ff=24, max_length=64
    )
)
PARAMS = drawn_params(MODEL)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
ROWS = len(PROMPTS)
NEW = 6
LOGPROB = 1e-4  # of float32 logits, read at once or one after another

GREEDY = Sampling(temperature=0.0)
HOT = Sampling(temperature=1.3, top_k=20, top_p=0.95)
RNG = jax.random.split(jax.random.key(5), ROWS)
LETTERS = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz .,")


def _generate(prompts=PROMPTS, new: int = NEW, **options):
    return generate(MODEL, PARAMS, prompts, max_new_tokens=new, **options)


@pytest.fixture(scope="module")
def sampled():
    return _generate(sampling=HOT, rng=RNG, logprobs=True, tokenizer=LETTERS)


@pytest.fixture(scope="module")
def greedy():
    return _generate()


# --- A way for each row ---------------------------------------------------------------


def test_each_row_chooses_in_its_own_way(sampled, greedy):
    mixed = _generate(sampling=[HOT, GREEDY, HOT, GREEDY], rng=RNG).tokens
    assert mixed == [
        (sampled if row % 2 == 0 else greedy).tokens[row] for row in range(ROWS)
    ]


def test_rows_that_ask_for_other_things_compile_nothing():
    ways = [Sampling(top_k=3, logit_bias={1: 2.0}), GREEDY, HOT, Sampling(min_p=0.1)]
    _generate(sampling=ways, rng=RNG)
    before = prefill._cache_size(), decode._cache_size()
    _generate(sampling=ways[::-1], rng=RNG)
    assert (prefill._cache_size(), decode._cache_size()) == before


def test_a_forbidden_token_never_comes(greedy):
    banned = greedy.tokens[0][0]
    biased = Sampling(temperature=0.0, logit_bias={banned: -np.inf})
    tokens = _generate(sampling=[biased, GREEDY, GREEDY, GREEDY]).tokens
    assert banned not in tokens[0]
    assert tokens[1:] == greedy.tokens[1:]


def _penalized_by_hand(prompt: list[int], sampling: Sampling) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW):
        read = jnp.zeros((1, 16), jnp.int32).at[0, : len(tokens)].set(jnp.array(tokens))
        logits = np.array(_forward(MODEL, PARAMS, read)[0, len(tokens) - 1])
        for token in set(tokens):
            ratio = sampling.repetition_penalty
            logits[token] *= ratio if logits[token] < 0 else 1 / ratio
        new = tokens[len(prompt) :]
        for token in set(new):
            logits[token] -= sampling.presence_penalty
            logits[token] -= sampling.frequency_penalty * new.count(token)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


_forward = jax.jit(
    lambda model, params, tokens: model.apply(params, None, tokens).logits,
    static_argnums=0,
)


def test_penalties_count_the_tokens_of_their_row():
    fined = Sampling(
        temperature=0.0,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.3,
    )
    expected = [_penalized_by_hand(prompt, fined) for prompt in PROMPTS]
    assert _generate(sampling=fined).tokens == expected


# --- Samples --------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [HOT, Sampling(presence_penalty=2.0)])
def test_the_first_sample_of_a_prompt_is_what_it_gets_alone(sampling):
    options = {"sampling": sampling, "rng": RNG}
    alone = _generate(**options).tokens
    tokens = _generate(num_samples=3, **options).tokens
    assert tokens[::3] == alone
    for first in range(0, 3 * ROWS, 3):
        assert len({tuple(row) for row in tokens[first : first + 3]}) == 3


def test_one_more_sample_does_not_change_those_before():
    two = _generate(num_samples=2, sampling=HOT, rng=RNG).tokens
    three = _generate(num_samples=3, sampling=HOT, rng=RNG).tokens
    assert [row for n, row in enumerate(three) if n % 3 < 2] == two


def test_samples_follow_the_keys_and_ways_of_their_prompt():
    ways = [HOT, GREEDY, HOT, GREEDY]
    tokens = _generate(num_samples=2, sampling=ways, rng=RNG).tokens
    assert tokens[::2] == _generate(sampling=ways, rng=RNG).tokens
    assert [tokens[n] == tokens[n + 1] for n in (0, 2, 4, 6)] == [
        False,
        True,
        False,
        True,
    ]


# --- Log-probabilities ----------------------------------------------------------------


def test_log_probabilities_are_those_of_a_full_forward(sampled):
    for prompt, new, logprobs in zip(
        PROMPTS, sampled.tokens, sampled.logprobs, strict=True
    ):
        row = prompt + new
        read = jnp.zeros((1, 16), jnp.int32).at[0, : len(row)].set(jnp.array(row))
        logits = _forward(MODEL, PARAMS, read)
        full = jax.nn.log_softmax(logits[0])
        places = np.arange(len(prompt) - 1, len(row) - 1)
        np.testing.assert_allclose(logprobs, full[places, np.array(new)], atol=LOGPROB)


def test_log_probabilities_come_only_where_asked_and_change_no_token(sampled):
    plain = _generate(sampling=HOT, rng=RNG)
    assert plain.logprobs is None
    assert plain.texts is None
    assert plain.tokens == sampled.tokens


def test_log_probabilities_stand_beside_tokens_where_rows_end(sampled):
    end = sampled.tokens[0][3]
    result = _generate(sampling=HOT, rng=RNG, logprobs=True, end_tokens=[end])
    for mine, tokens, free in zip(
        result.logprobs, result.tokens, sampled.logprobs, strict=True
    ):
        assert len(mine) == len(tokens)
        np.testing.assert_allclose(mine, free[: len(mine)], atol=LOGPROB)


# --- Stop strings ---------------------------------------------------------------------


def _stopped(stop, **options):
    return _generate(sampling=HOT, rng=RNG, stop=stop, tokenizer=LETTERS, **options)


def test_a_stop_string_ends_its_row_across_tokens_and_others_go_on(sampled):
    stop = sampled.texts[0][2:4]
    result = _stopped([stop], logprobs=True)
    for row, free in enumerate(sampled.texts):
        cut = free.find(stop)
        kept = NEW if cut < 0 else cut + len(stop)
        assert result.texts[row] == (free if cut < 0 else free[:cut])
        assert result.tokens[row] == sampled.tokens[row][:kept]
        assert len(result.logprobs[row]) == kept
        assert result.finish_reasons[row] == ("length" if cut < 0 else "stop")
    assert result.finish_reasons[0] == "stop"
    assert "length" in result.finish_reasons


def _row_of_distinct_letters(sampled) -> int:
    return next(n for n, text in enumerate(sampled.texts) if len(set(text)) == NEW)


def test_the_stop_string_that_is_whole_first_ends_a_row(sampled):
    row = _row_of_distinct_letters(sampled)
    text = sampled.texts[row]
    result = _stopped([text[4:6], text[1:4], text[2]])
    assert result.texts[row] == text[:2]
    assert result.tokens[row] == sampled.tokens[row][:3]


def test_stops_are_the_same_whatever_the_chunk(sampled):
    stop = [text[2:4] for text in sampled.texts]
    expected = _stopped(stop).tokens
    for chunk in (1, 3, 32):
        steps = stream(
            MODEL,
            PARAMS,
            PROMPTS,
            max_new_tokens=NEW,
            sampling=HOT,
            rng=RNG,
            stop=stop,
            tokenizer=LETTERS,
            chunk=chunk,
        )
        columns = zip(*(step.tokens for step in steps), strict=True)
        rows = [list(itertools.chain(*row)) for row in columns]
        assert rows == expected


def test_a_stop_string_at_the_last_place_is_the_reason(sampled):
    row = _row_of_distinct_letters(sampled)
    result = _stopped([sampled.texts[row][-2:]])
    assert result.tokens[row] == sampled.tokens[row]
    assert result.texts[row] == sampled.texts[row][:-2]
    assert result.finish_reasons[row] == "stop"


texts = st.text("aé𝄞 .", min_size=1, max_size=12)


@given(text=texts, stop=st.lists(st.text("aé𝄞 .", min_size=1, max_size=3), max_size=3))
def test_stop_strings_of_half_characters_are_found_when_they_are_whole(text, stop):
    stops, tokens = StopStrings(stop, ByteTokenizer()), list(text.encode())
    ends = [text.index(one) + len(one) for one in stop if one in text]
    whole = len(text[: min(ends)].encode()) if ends else None
    assert stops.find(tokens, seen=0) == whole
    starts = [text.index(one) for one in stop if one in text]
    assert stops.text(tokens) == text[: min(starts, default=len(text))]
    for seen in range(len(tokens)):
        found = stops.find(tokens[: seen + 1], seen)
        assert found == (whole if whole == seen + 1 else found)
        if found is not None:
            assert found == whole
            break


# --- Allowed tokens -------------------------------------------------------------------


def test_only_allowed_tokens_are_generated():
    seen = []

    def next_after(row, tokens):
        seen.append((row, list(tokens)))
        return [(row + 2 * len(tokens)) % V]

    tokens = _generate(allowed_tokens=next_after).tokens
    assert tokens == [[row + 2 * n for n in range(NEW)] for row in range(ROWS)]
    assert seen == [(row, tokens[row][:n]) for n in range(NEW) for row in range(ROWS)]


def test_none_allows_all_and_ids_may_be_an_array(greedy):
    assert _generate(allowed_tokens=lambda *_: None).tokens == greedy.tokens
    allowed = np.array([3, 8, 20])
    tokens = _generate(sampling=HOT, rng=RNG, allowed_tokens=lambda *_: allowed).tokens
    assert set(itertools.chain(*tokens)) <= {3, 8, 20}


def test_a_row_that_ended_is_asked_for_nothing_more():
    asked = []

    def allowed(row, tokens):
        asked.append(row)
        return [9] if row == 1 or len(tokens) == 2 else [5]

    result = _generate(allowed_tokens=allowed, end_tokens=[9])
    assert result.tokens == [[5, 5], [], [5, 5], [5, 5]]
    assert asked.count(1) == 1
    assert asked.count(0) == 3


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"allowed_tokens\(0, \[\d+\]\) must hold at least one token id"),
        ([29], r"allowed_tokens\(0, \[\d+\]\) .* from 0 to 28 .* got 29 at 0"),
        ([1, -1], r"allowed_tokens\(0, \[\d+\]\) .* from 0 to 28 .* got -1 at 1"),
        (np.array([True]), r"allowed_tokens\(0, \[\d+\]\) .* got True at 0"),
    ],
)
def test_allowed_tokens_that_are_none_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        _generate(allowed_tokens=lambda _, tokens: ids if tokens else None)


def test_bias_and_allowed_tokens_that_leave_nothing_are_told_of():
    banned = Sampling(temperature=0.0, logit_bias={5: -np.inf})
    with pytest.raises(FloatingPointError, match=r"row 0 .* leave it no token"):
        _generate(sampling=banned, allowed_tokens=lambda *_: [5])


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number >= 1, got 0"),
        ({"sampling": [GREEDY]}, "sampling must be one Sampling, or one .* got 1"),
        ({"sampling": [None] * ROWS}, r"sampling\[0\] must be a Sampling, got None"),
        ({"sampling": [GREEDY, HOT, HOT, HOT]}, "rng must be given .* = 1.3"),
        (
            {"sampling": Sampling(temperature=0.0, logit_bias={29: 1.0})},
            "logit_bias must hold ids from 0 to 28 .* got 29",
        ),
        (
            {"sampling": Sampling(logit_bias=dict.fromkeys(range(V), -np.inf))},
            "logit_bias must leave a token in play, got -inf for all 29",
        ),
        ({"stop": ["a"]}, "tokenizer must be given with stop, got None"),
        ({"stop": "ab", "tokenizer": LETTERS}, "stop must be a list of texts, .*'ab'"),
        ({"stop": [""], "tokenizer": LETTERS}, r"stop\[0\] must be a text of at least"),
        ({"stop": [3], "tokenizer": LETTERS}, r"stop\[0\] must be a text .* got 3"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_the_call(options, message):
    with pytest.raises(ValueError, match=message):
        stream(MODEL, PARAMS, PROMPTS, max_new_tokens=NEW, **options)


def test_a_stream_of_allowed_tokens_is_one_token_at_a_time():
    with pytest.raises(ValueError, match="chunk must be 1 with allowed_tokens, got 4"):
        stream(
            MODEL,
            PARAMS,
            PROMPTS,
            max_new_tokens=NEW,
            allowed_tokens=lambda *_: None,
            chunk=4,
        )
