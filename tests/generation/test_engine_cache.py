"""What an engine's slots hold: in which form, how much of it is used, and for whom."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from haiku_mqa import Sampling
from haiku_mqa.generation import Engine, _turns
from tests.generation.alone import GREEDY, MODEL, PARAMS, Wish, alone

SIZES = {"slots": 2, "max_length": 50, "prefill_chunk": 16, "decode_chunk": 4}
PROMPTS = [tuple(range(20)), (4,), (12, 13), (7,) * 9]
NEW = 11


def _engine(**options) -> Engine:
    return Engine(MODEL, PARAMS, **{**SIZES, **options})


def _alone(prompt, new: int = NEW, sampling: Sampling = GREEDY) -> list[int]:
    [tokens] = alone([Wish(tuple(prompt), new, sampling)])
    return tokens


# --- Forms ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="steps")
def _greedy(prompt, length, cache, *, steps):
    """Returns the likeliest tokens after each, where the prompt is read one by one."""

    def step(carry, place):
        cache, last = carry
        token = jnp.where(place < length, prompt[place], last)
        out = MODEL.apply(PARAMS, None, token[None, None], cache=cache)
        token = out.logits[0, 0].argmax().astype(jnp.int32)
        return (out.cache, token), token

    return jax.lax.scan(step, (cache, jnp.int32(0)), jnp.arange(steps))[1]


@pytest.fixture
def one_width(monkeypatch):
    """All slots make one program, since each of another form is one more."""
    monkeypatch.setattr(_turns, "_widths", lambda slots: [slots])


@pytest.mark.parametrize("ring", [False, True], ids=["int8", "int8 ring"])
def test_tokens_are_those_that_a_cache_of_the_form_gives_alone(one_width, ring):
    engine = _engine(cache_dtype="int8", ring_cache=ring)
    requests = [engine.submit(PROMPTS[0], max_new_tokens=NEW)]
    engine.step()  # so that they stand at different places
    requests += [engine.submit(prompt, max_new_tokens=NEW) for prompt in PROMPTS[1:]]
    engine.run()
    for prompt, request in zip(PROMPTS, requests, strict=True):
        padded = jnp.zeros(32, jnp.int32).at[: len(prompt)].set(jnp.array(prompt))
        cache = MODEL.init_cache(1, 50, "int8", ring=ring)
        tokens = _greedy(padded, len(prompt), cache, steps=32).tolist()
        assert request.tokens == tokens[len(prompt) - 1 :][:NEW]


def test_int8_takes_about_a_quarter_of_the_memory():
    whole, small = (
        _engine(cache_dtype=dtype)._turns._held.cache for dtype in (None, "int8")
    )
    assert small.nbytes < 0.5 * whole.nbytes  # heads are small here, scales are not


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_dtype": "int4"}, "dtype must be|unknown dtype 'int4'"),
        ({"ring_cache": 1}, "ring_cache must be True or False, got 1"),
    ],
    ids=str,
)
def test_cache_of_an_unknown_form_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _engine(**options)


# --- As much as is used ---------------------------------------------------------------


@pytest.fixture
def worked_on(monkeypatch):
    """The rows and the room of each call that chose tokens."""
    sizes, decode = [], _turns.decode

    def noted(*arguments, **options):
        sizes.append((len(arguments[6].token), options["length"]))
        return decode(*arguments, **options)

    monkeypatch.setattr(_turns, "decode", noted)
    return sizes


def test_one_request_is_alone_in_its_program(worked_on):
    engine = _engine()
    engine.submit(PROMPTS[0], max_new_tokens=NEW).result()
    assert set(worked_on) == {(1, 50)}


def test_no_more_room_is_worked_on_than_is_used(worked_on, monkeypatch):
    monkeypatch.setattr(_turns, "_SHORTEST", 12)
    engine = _engine()
    request = engine.submit(PROMPTS[2], max_new_tokens=20)
    assert request.result().tokens == _alone(PROMPTS[2], new=20)
    assert [length for _, length in worked_on] == [12, 12, 50, 50, 50]


def test_rows_that_are_left_close_ranks(worked_on, monkeypatch):
    monkeypatch.setattr(_turns, "_COARSE", 2)
    engine = _engine(slots=4)
    long = {0: 29, 3: 27}
    requests = [
        engine.submit(prompt, max_new_tokens=long.get(index, 6))
        for index, prompt in enumerate(PROMPTS)
    ]
    engine.run()
    assert [r.tokens for r in requests] == [
        _alone(prompt, long.get(index, 6)) for index, prompt in enumerate(PROMPTS)
    ]
    assert {width for width, _ in worked_on} == {1, 2, 4}
    # What they leave is found again, though a row has moved.
    again = [engine.submit(prompt, max_new_tokens=2) for prompt in PROMPTS[::3]]
    engine.run()
    assert [request.num_reused for request in again] == [19, 8]
    assert [request.tokens for request in again] == [
        _alone(prompt, 2) for prompt in PROMPTS[::3]
    ]


# --- Known from another ---------------------------------------------------------------


def test_prompt_that_begins_as_another_is_read_from_where_they_part():
    engine = _engine()
    engine.submit(PROMPTS[0], max_new_tokens=NEW).result()
    other = (*PROMPTS[0][:15], 25, 26)
    parted = engine.submit(other, max_new_tokens=NEW)
    again = engine.submit(PROMPTS[0], max_new_tokens=NEW)
    engine.run()
    # Of the same prompt the last token is read, for what comes after it.
    assert (parted.num_reused, again.num_reused) == (15, 19)
    assert (parted.tokens, again.tokens) == (_alone(other), _alone(PROMPTS[0]))


def test_answer_too_is_known_where_a_conversation_goes_on():
    engine = _engine()
    first = engine.submit(PROMPTS[3], max_new_tokens=NEW)
    other = engine.submit(PROMPTS[2], max_new_tokens=NEW)
    engine.run()
    text = (*first.prompt, *first.tokens)
    second = engine.submit((*text, 1), max_new_tokens=NEW)
    third = engine.submit((*other.prompt, *other.tokens, 1), max_new_tokens=NEW)
    engine.run()
    assert second.num_reused == len(text) - 1  # the last was chosen, and never read
    assert third.num_reused == len(other.prompt) + NEW - 1
    assert second.tokens == _alone((*text, 1))


def test_prompt_of_who_is_under_way_is_known_too():
    engine = _engine()
    first = engine.submit(PROMPTS[0], max_new_tokens=25)
    engine.step()
    engine.step()
    assert first.tokens
    second = engine.submit((*PROMPTS[0][:18], 3, 3), max_new_tokens=NEW)
    engine.run()
    assert second.num_reused == 18
    assert second.tokens == _alone((*PROMPTS[0][:18], 3, 3))
    assert first.tokens == _alone(PROMPTS[0], 25)


def test_prompts_that_come_at_once_read_what_they_share_once():
    engine = _engine(slots=4)
    prompts = [(*PROMPTS[3], token) for token in range(4)]
    requests = [engine.submit(prompt, max_new_tokens=2) for prompt in prompts]
    engine.run()
    assert [request.num_reused for request in requests] == [0, 9, 9, 9]
    assert [r.tokens for r in requests] == [_alone(prompt, 2) for prompt in prompts]


def test_text_is_kept_while_there_is_another_slot():
    engine = _engine()
    for prompt in (PROMPTS[0], PROMPTS[2], PROMPTS[3]):
        engine.submit(prompt, max_new_tokens=2).result()
    # The third took the slot of the first, which was free for longest.
    again = [engine.submit(p, max_new_tokens=2) for p in (PROMPTS[2], PROMPTS[0])]
    engine.run()
    assert [request.num_reused for request in again] == [1, 0]


def test_known_tokens_count_for_penalties():
    sampling = Sampling(temperature=0.0, repetition_penalty=1.8)
    engine = _engine()
    for _ in range(2):
        request = engine.submit(PROMPTS[0], max_new_tokens=NEW, sampling=sampling)
        assert request.result().tokens == _alone(PROMPTS[0], NEW, sampling)
    assert request.num_reused == 19


def test_ring_has_forgotten_what_another_could_begin_with(one_width):
    engine = _engine(cache_dtype="int8", ring_cache=True)
    first, again = (engine.submit(PROMPTS[0], max_new_tokens=2) for _ in range(2))
    engine.run()
    assert first.num_reused == again.num_reused == 0
    assert first.tokens == again.tokens
