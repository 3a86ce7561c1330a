"""Continuous batching: requests that come and go, and get what they would get alone."""

from __future__ import annotations

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import Model, Sampling, generate
from haiku_mqa.errors import EngineFull, EngineStopped
from haiku_mqa.generation import Engine, _slots
from tests.generation.alone import GREEDY, MODEL, PARAMS, Wish, alone
from tests.models import drawn_params

SIZES = {"slots": 2, "max_length": 50, "prefill_chunk": 8, "decode_chunk": 4}
PROMPTS = [(1, 2, 3), (4,), tuple(range(20)), (12, 13), (7,) * 9]
HOT = Sampling(temperature=1.3, top_k=20, top_p=0.95)
NEW = 11


def _engine(model=MODEL, params=PARAMS, **sizes) -> Engine:
    return Engine(model, params, **{**SIZES, **sizes})


def _alone(prompt, new: int = NEW, sampling: Sampling = GREEDY, seed: int = 0):
    [tokens] = alone([Wish(prompt, new, sampling, seed)])
    return tokens


def _logprobs(request) -> jax.Array:
    """Returns the model's log-probabilities at each place of an answer, ``[T, V]``."""
    text = jnp.array([[*request.prompt, *request.tokens]])
    logits = MODEL.apply(PARAMS, None, text).logits[0]
    return jax.nn.log_softmax(logits[len(request.prompt) - 1 : -1])


def test_request_gets_the_tokens_of_a_call_of_its_own():
    engine = _engine()
    requests = [
        engine.submit(PROMPTS[2], max_new_tokens=NEW),
        engine.submit(PROMPTS[2], max_new_tokens=NEW, sampling=HOT, seed=3),
    ]
    engine.run()
    for request, sampling in zip(requests, (None, HOT), strict=True):
        options = {"sampling": sampling, "rng": jax.random.key(3)}
        [tokens] = generate(
            MODEL, PARAMS, [PROMPTS[2]], max_new_tokens=NEW, **options
        ).tokens
        assert request.tokens == tokens


def test_each_request_has_its_own_sampling_and_seed_in_whichever_slot():
    samplings = [
        GREEDY,
        HOT,
        Sampling(temperature=0.7),
        Sampling(temperature=0.0, repetition_penalty=1.5),
        Sampling(temperature=0.9, presence_penalty=1.0, frequency_penalty=0.5),
        Sampling(temperature=0.0, logit_bias={3: 5.0, 7: -float("inf")}),
        Sampling(min_p=0.1, typical_p=0.8),
    ]
    wishes = [
        Wish(prompt, NEW, sampling, seed)
        for seed, sampling in enumerate(samplings)
        for prompt in PROMPTS[1:4]
    ]
    engine = _engine()
    requests = [wish.submit(engine) for wish in wishes]
    engine.run()
    assert [request.tokens for request in requests] == alone(wishes)


def test_equal_requests_with_other_seeds_differ_and_with_one_seed_do_not():
    engine = _engine()
    requests = [
        engine.submit([1, 2], max_new_tokens=NEW, sampling=HOT, seed=seed)
        for seed in (0, 2**32 - 1, 0)
    ]
    engine.run()
    first, other, again = (request.tokens for request in requests)
    assert first == again != other


def test_request_joins_others_that_are_under_way():
    engine = _engine()
    early = engine.submit(PROMPTS[0], max_new_tokens=30)
    engine.step()
    assert 0 < len(early.tokens) < 30
    late = engine.submit(PROMPTS[2], max_new_tokens=3, sampling=HOT, seed=5)
    engine.run()
    assert early.tokens == _alone(PROMPTS[0], new=30)
    assert late.tokens == _alone(PROMPTS[2], new=3, sampling=HOT, seed=5)


def test_requests_come_and_go_without_another_program():
    engine = _engine(prefill_chunk=20)  # two widths of a piece, 16 and 20
    engine.warm_up()
    before = _slots.read._cache_size(), _slots.decode._cache_size()
    samplings = [None, HOT, Sampling(min_p=0.1), Sampling(presence_penalty=1.0), None]
    for seed, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True)):
        engine.submit(
            prompt,
            max_new_tokens=seed + 1,
            sampling=sampling,
            seed=seed,
            end_tokens=range(seed),
        )
        engine.step()
    engine.run()
    assert (_slots.read._cache_size(), _slots.decode._cache_size()) == before


def test_warming_up_amid_a_request_leaves_its_tokens_as_they_are():
    engine = _engine()
    request = engine.submit(PROMPTS[2], max_new_tokens=NEW)
    engine.step()
    engine.warm_up()
    assert request.result().tokens == _alone(PROMPTS[2])


def test_logprobs_are_those_of_the_models_own_distribution():
    engine = _engine()
    asked = {"max_new_tokens": NEW, "logprobs": True}
    requests = [
        engine.submit(PROMPTS[2], **asked, top_logprobs=4),
        engine.submit(PROMPTS[2], **asked, sampling=HOT, seed=3),
    ]
    beside = engine.submit(PROMPTS[0], max_new_tokens=NEW)
    engine.run()
    for request in requests:
        own = _logprobs(request)[jnp.arange(NEW), jnp.array(request.tokens)]
        np.testing.assert_allclose(request.result().logprobs, own, atol=1e-4)
    top = requests[0].result().top_logprobs
    assert [[token for token, _ in each] for each in top] == (
        jax.lax.top_k(_logprobs(requests[0]), 4)[1].tolist()
    )
    for each, logprob in zip(top, requests[0].logprobs, strict=True):
        assert each[0][1] == logprob  # greedy
        assert [p for _, p in each] == sorted((p for _, p in each), reverse=True)
    assert requests[1].top_logprobs is beside.logprobs is beside.top_logprobs is None


@pytest.mark.parametrize("many", [False, True], ids=["few", "more than a row holds"])
def test_end_token_ends_its_request_alone(many):
    free = _alone(PROMPTS[0])
    end = free[4]
    others = sorted(set(range(29)) - set(free))
    ends = [*others[:9], end] if many else [end]
    engine = _engine()
    ended = engine.submit(PROMPTS[0], max_new_tokens=NEW, end_tokens=ends)
    beside = engine.submit(PROMPTS[0], max_new_tokens=NEW)
    engine.run()
    assert ended.result().tokens == free[: free.index(end)]
    assert ended.result().finish_reason == "end"
    assert (beside.tokens, beside.result().finish_reason) == (free, "length")


def test_engine_takes_requests_up_to_its_last_slot_of_the_cache():
    engine = _engine()
    request = engine.submit(PROMPTS[2], max_new_tokens=30)
    assert request.result().tokens == _alone(PROMPTS[2], new=30)


# --- Waiting for a request ------------------------------------------------------------


def test_waiting_for_a_request_makes_the_turns():
    engine = _engine()
    first, second = (engine.submit(p, max_new_tokens=NEW) for p in PROMPTS[:2])
    assert list(second) == _alone(PROMPTS[1])
    assert list(second) == second.tokens  # once more, from the first
    assert first.result().tokens == _alone(PROMPTS[0])


def test_iteration_gives_tokens_as_they_are_chosen():
    engine = _engine()
    request = engine.submit(PROMPTS[0], max_new_tokens=30)
    tokens = iter(request)
    assert next(tokens) == request.tokens[0]
    assert not request.is_done
    assert [request.tokens[0], *tokens] == _alone(PROMPTS[0], new=30)


def test_threads_wait_for_what_the_background_makes():
    got: dict[int, list[int]] = {}
    with _engine() as engine:

        def ask(index: int) -> None:
            request = engine.submit(PROMPTS[index], max_new_tokens=NEW)
            got[index] = list(request)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {index: _alone(prompt) for index, prompt in enumerate(PROMPTS)}


def test_progress_is_told_with_each_turn_and_at_the_end():
    engine, seen = _engine(), []
    request = engine.submit(
        PROMPTS[0],
        max_new_tokens=NEW,
        on_progress=lambda: seen.append((len(request.tokens), request.is_done)),
    )
    engine.run()
    assert seen == sorted(set(seen))
    assert seen[0][0] < NEW
    assert seen[-1] == (NEW, True)


def test_result_gives_up_after_its_timeout():
    with _engine() as engine:
        with engine._turns.lock:  # as if a turn took that long
            request = engine.submit(PROMPTS[0], max_new_tokens=NEW)
            with pytest.raises(TimeoutError, match=r"still open after 0\.05 s"):
                request.result(timeout=0.05)
        assert request.result().tokens == _alone(PROMPTS[0])


# --- Cancelling, and too many ---------------------------------------------------------


def test_cancelled_request_frees_its_slot_at_once():
    engine = _engine(slots=1)
    first = engine.submit(PROMPTS[0], max_new_tokens=30)
    second = engine.submit(PROMPTS[1], max_new_tokens=NEW)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    assert first.cancel()
    assert (engine.num_running, engine.num_waiting) == (0, 1)
    assert second.result().tokens == _alone(PROMPTS[1])
    so_far = first.result()
    assert so_far.finish_reason == "cancelled"
    assert so_far.tokens == _alone(PROMPTS[0], new=30)[: len(so_far.tokens)]
    assert list(first) == so_far.tokens


def test_request_can_be_cancelled_while_it_waits_and_while_it_is_read():
    engine = _engine(slots=1)
    reading = engine.submit(PROMPTS[2], max_new_tokens=NEW)
    waiting = engine.submit(PROMPTS[0], max_new_tokens=NEW)
    last = engine.submit(PROMPTS[4], max_new_tokens=NEW)
    engine.step()
    assert waiting.cancel()
    assert reading.cancel()
    engine.run()
    assert (reading.tokens, waiting.tokens) == ([], [])
    assert last.tokens == _alone(PROMPTS[4])


def test_request_that_ended_cannot_be_cancelled():
    request = _engine().submit(PROMPTS[0], max_new_tokens=2)
    result = request.result()
    assert not request.cancel()
    assert request.result() == result


def test_tokens_of_a_request_cancelled_amid_a_turn_are_nobodys(monkeypatch):
    engine = _engine(slots=1)
    first = engine.submit(PROMPTS[0], max_new_tokens=30)
    engine.step()
    before, decode = len(first.tokens), engine._turns._decode

    def cancelled_amid(*arguments, **options):
        chosen = decode(*arguments, **options)
        first.cancel()
        return chosen

    monkeypatch.setattr(engine._turns, "_decode", cancelled_amid)
    engine.step()
    monkeypatch.undo()
    second = engine.submit(PROMPTS[1], max_new_tokens=NEW)
    assert len(first.result().tokens) == before
    assert second.result().tokens == _alone(PROMPTS[1])


def test_more_requests_than_may_wait_are_refused_until_some_are_done():
    engine = _engine(slots=1, max_waiting=2)
    requests = [engine.submit([1], max_new_tokens=2) for _ in range(3)]
    with pytest.raises(EngineFull, match=r"max_waiting = 2 requests .* waiting: 3"):
        engine.submit([1], max_new_tokens=2)
    engine.run()
    assert [len(request.tokens) for request in requests] == [2] * 3
    assert len(engine.submit([1], max_new_tokens=2).result().tokens) == 2


# --- Stopping -------------------------------------------------------------------------


def test_stop_finishes_what_is_open_and_takes_no_more():
    engine = _engine(slots=1).start()
    requests = [engine.submit(p, max_new_tokens=NEW) for p in PROMPTS[:3]]
    engine.stop()
    assert [r.tokens for r in requests] == [_alone(p) for p in PROMPTS[:3]]
    with pytest.raises(EngineStopped, match="takes no more requests"):
        engine.submit([1], max_new_tokens=2)
    assert not engine.is_busy


@pytest.mark.parametrize("options", [{"finish": False}, {"timeout": 0.0}], ids=str)
def test_stop_cancels_what_it_does_not_finish(options):
    engine = _engine(slots=1).start()
    with engine._turns.lock:
        requests = [engine.submit(p, max_new_tokens=40) for p in PROMPTS[:2]]
        stopping = threading.Thread(target=engine.stop, kwargs=options)
        stopping.start()
        reasons = [r.result(timeout=60).finish_reason for r in requests]
    stopping.join()
    assert reasons == ["cancelled"] * 2


def test_engine_can_be_started_again_after_a_stop():
    engine = _engine().start()
    with pytest.raises(RuntimeError, match="started already"):
        engine.start()
    engine.stop()
    with engine:
        request = engine.submit(PROMPTS[0], max_new_tokens=NEW)
        assert request.result().tokens == _alone(PROMPTS[0])


def test_stop_without_a_thread_makes_the_turns_itself():
    engine = _engine()
    request = engine.submit(PROMPTS[0], max_new_tokens=NEW)
    engine.stop()
    assert request.is_done
    assert request.tokens == _alone(PROMPTS[0])


# --- What goes wrong ------------------------------------------------------------------


def test_nan_logits_end_their_request_alone_and_leave_nothing_in_its_slot():
    # Its output matrix is another, so that the rest of it is not NaN too.
    model = Model(dataclasses.replace(MODEL.config, tie_embeddings=False))
    params = drawn_params(model)
    table = params["decoder_lm/embed"]["embeddings"]
    params["decoder_lm/embed"] = {"embeddings": table.at[12].set(jnp.nan)}
    engine = _engine(model, params)
    broken = engine.submit([2, 12, 3], max_new_tokens=NEW)
    beside = engine.submit([1], max_new_tokens=1)
    engine.run()
    with pytest.raises(FloatingPointError, match="logits of this request are NaN"):
        broken.result()
    with pytest.raises(FloatingPointError):
        list(broken)
    after = [engine.submit([1], max_new_tokens=1) for _ in range(2)]
    engine.run()
    assert [r.tokens for r in after] == [beside.tokens] * 2


def test_error_of_the_device_ends_what_is_open_and_the_engine_goes_on(monkeypatch):
    engine = _engine()
    lost = [engine.submit(p, max_new_tokens=NEW) for p in PROMPTS]

    def fail(*_, **__):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("haiku_mqa.generation._turns.decode", fail)
        with pytest.raises(MemoryError, match="no room"):
            engine.run()
    for request in lost:
        with pytest.raises(MemoryError, match="no room"):
            request.result()
    later = engine.submit(PROMPTS[0], max_new_tokens=NEW)
    assert later.result().tokens == _alone(PROMPTS[0])


def test_error_of_the_device_reaches_who_waits_for_the_background(monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no room")

    with _engine() as engine:
        with monkeypatch.context() as patch:
            patch.setattr("haiku_mqa.generation._turns.read", fail)
            with pytest.raises(MemoryError, match="no room"):
                engine.submit(PROMPTS[0], max_new_tokens=NEW).result()
        later = engine.submit(PROMPTS[0], max_new_tokens=NEW)
        assert later.result().tokens == _alone(PROMPTS[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt must hold at least one token id, and is empty"),
        ({"prompt": "hi"}, "prompt must be a list of token ids, got 'hi'"),
        ({"prompt": 3}, "prompt must be a list of token ids, got 3"),
        ({"prompt": [1, 29]}, r"prompt .* from 0 to 28 .* got 29 at 1"),
        ({"prompt": [-1]}, r"prompt .* from 0 to 28 .* got -1 at 0"),
        ({"prompt": [1.5]}, r"prompt must hold ids .* got 1.5 at 0"),
        ({"prompt": [1] * 49}, "prompt has 49 tokens .* engine's max_length = 50"),
        ({"max_new_tokens": 50}, "max_new_tokens is 50: together more than"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number >= 1"),
        ({"sampling": 0.7}, "sampling must be a Sampling or None, got 0.7"),
        ({"sampling": HOT}, "seed must be given where temperature is above 0"),
        (
            {"sampling": Sampling(temperature=0, logit_bias={29: 1.0})},
            "logit_bias must hold ids from 0 to 28",
        ),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"logprobs": 1}, "logprobs must be True or False, got 1"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs must be a whole number from 0 to 20, got 21",
        ),
        ({"top_logprobs": 2}, "top_logprobs must be 0 where logprobs is False, got 2"),
        ({"end_tokens": [29]}, "end_tokens must hold ids from 0 to 28 .* got 29"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_request_is_refused_at_the_door(arguments, message):
    engine = _engine()
    with pytest.raises(ValueError, match=message):
        engine.submit(**{"prompt": [1], "max_new_tokens": 2, **arguments})
    assert not engine.is_busy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slots": 0}, "slots must be a whole number >= 1, got 0"),
        ({"max_length": 65}, "max_length must be a whole number from 2 to 64, got 65"),
        ({"max_waiting": -1}, "max_waiting must be a whole number >= 0, got -1"),
        ({"prefill_chunk": 0}, "prefill_chunk must be a whole number >= 1, got 0"),
        ({"decode_chunk": 2.5}, "decode_chunk must be a whole number >= 1, got 2.5"),
        ({"params": {}}, "params do not fit the model: missing"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_engine_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _engine(**arguments)
