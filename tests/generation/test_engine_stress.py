"""An engine under many requests: nothing is lost, doubled or mixed up."""

from __future__ import annotations

import collections
import functools
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from haiku_mqa import Sampling
from haiku_mqa.errors import EngineFull
from haiku_mqa.generation import Engine, Request
from tests.generation.alone import GREEDY, LONGEST, MODEL, PARAMS, Wish, alone

V = MODEL.config.vocab_size
NEW = 12  # tokens of a continuation, at most
SAMPLINGS = (
    GREEDY,
    Sampling(temperature=1.2, top_k=20, top_p=0.9),
    Sampling(),
    Sampling(temperature=0.8, presence_penalty=0.5, repetition_penalty=1.2),
)
SLOTS = 4
SIZES = {"slots": SLOTS, "max_length": 32, "prefill_chunk": 8, "decode_chunk": 4}


def _expected(wishes: list[Wish]) -> dict[Wish, list[int]]:
    """Returns what ``generate`` gives each."""
    return dict(zip(wishes, alone(wishes), strict=True))


def _draw_wish(draw: np.random.Generator) -> Wish:
    length = int(draw.integers(1, LONGEST + 1))
    return Wish(
        prompt=tuple(draw.integers(0, V, length).tolist()),
        new=int(draw.integers(1, NEW + 1)),
        sampling=SAMPLINGS[draw.integers(len(SAMPLINGS))],
        seed=int(draw.integers(2**32)),
        end=int(draw.integers(V)) if draw.random() < 0.5 else None,
    )


BAD = (
    Wish((), 3),
    Wish((V,), 3),
    Wish((1,) * 30, 3),
    Wish((1,), 3, SAMPLINGS[1], -1),
    Wish((1,), 0),
    Wish((1,), 3, end=V),
)


@pytest.mark.parametrize("background", [False, True], ids=["turns", "thread"])
def test_two_hundred_requests_come_to_what_each_would_alone(background):
    draw = np.random.default_rng(7)
    engine = Engine(MODEL, PARAMS, max_waiting=12, **SIZES)
    asked: list[tuple[Wish, Request]] = []
    refused = full = 0
    if background:
        engine.start()
    while len(asked) < 200:
        if draw.random() < 0.1:
            with pytest.raises(ValueError, match=r"must|together"):
                BAD[draw.integers(len(BAD))].submit(engine)
            refused += 1
        wish = _draw_wish(draw)
        try:
            asked.append((wish, wish.submit(engine)))
        except EngineFull:
            full += 1
            asked[-12][1].result()
        if draw.random() < 0.2:
            asked[-int(draw.integers(1, min(len(asked), 20) + 1))][1].cancel()
        if not background and draw.random() < 0.3:
            engine.step()
    engine.stop()
    assert (engine.num_waiting, engine.num_running) == (0, 0)
    expected = _expected([wish for wish, _ in asked])
    reasons = collections.Counter()
    for wish, request in asked:
        result = request.result()
        reasons[result.finish_reason] += 1
        tokens = expected[wish]
        if result.finish_reason == "cancelled":
            assert result.tokens == tokens[: len(result.tokens)]
        else:
            assert result.tokens == tokens
            full_length = len(tokens) == wish.new
            assert result.finish_reason == ("length" if full_length else "end")
    assert min(refused, full, *(reasons[r] for r in ("end", "length"))) > 0
    assert 0 < reasons["cancelled"] < 100
    assert reasons.total() == 200


def test_threads_that_ask_cancel_and_wait_at_once_get_their_own():
    engine = Engine(MODEL, PARAMS, **SIZES)
    got: list[tuple[Wish, list[int], str]] = []

    def ask(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(6):
            wish = _draw_wish(draw)
            request = wish.submit(engine)
            if draw.random() < 0.3:
                next(iter(request), None)
                request.cancel()
            tokens = list(request)
            got.append((wish, tokens, request.result().finish_reason))

    with engine:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = _expected([wish for wish, _, _ in got])
    assert len(got) == 36
    for wish, tokens, reason in got:
        cut = len(tokens) if reason == "cancelled" else wish.new
        assert tokens == expected[wish][:cut]


# --- Any order of events --------------------------------------------------------------


@functools.cache
def _wishes() -> tuple[Wish, ...]:
    draw = np.random.default_rng(3)
    return tuple(_draw_wish(draw) for _ in range(24))


@functools.cache
def _expected_of_wishes() -> dict[Wish, list[int]]:
    return _expected(list(_wishes()))


class EngineMachine(RuleBasedStateMachine):
    """Requests, cancellations and turns in any order, beside a model of them."""

    @initialize()
    def make(self) -> None:
        sizes = {**SIZES, "max_waiting": 2}
        self.engine = Engine(MODEL, PARAMS, **sizes)
        self.asked: list[tuple[Wish, Request]] = []
        self.seen: dict[Request, list[int]] = {}

    @property
    def open(self) -> list[Request]:
        return [request for _, request in self.asked if not request.is_done]

    @rule(index=st.integers(0, 23))
    def submit(self, index: int) -> None:
        wish = _wishes()[index]
        free = SLOTS - self.engine.num_running
        if self.engine.num_waiting >= 2 + free:
            with pytest.raises(EngineFull):
                wish.submit(self.engine)
        else:
            self.asked.append((wish, wish.submit(self.engine)))

    @rule(bad=st.sampled_from(BAD))
    def submit_what_is_bad(self, bad: Wish) -> None:
        with pytest.raises(ValueError, match=r"must|together"):
            bad.submit(self.engine)

    @rule(data=st.data())
    @precondition(lambda self: self.asked)
    def cancel(self, data: st.DataObject) -> None:
        _, request = data.draw(st.sampled_from(self.asked))
        was_open, before = not request.is_done, len(self.open)
        assert request.cancel() == was_open
        assert len(self.open) == before - was_open

    @rule()
    def step(self) -> None:
        assert self.engine.step() == bool(self.open)

    @property
    def held(self) -> list[Request]:
        slots = self.engine._line._slots
        return [slot.request for slot in slots if slot.request is not None]

    @invariant()
    def all_that_is_open_is_held_once(self) -> None:
        line = self.engine._line
        waiting = list(line._waiting)
        assert collections.Counter(self.held + waiting) == collections.Counter(
            self.open
        )
        assert self.engine.num_running == len(self.held) <= SLOTS
        assert len(waiting) <= SLOTS + 2
        assert [slot.place for slot in line._slots] == list(range(SLOTS))
        for slot in line._unread:
            assert slot.request is not None
            assert (slot.read or 0) < len(slot.request.prompt)

    @invariant()
    def first_come_is_first_served(self) -> None:
        order = [request for _, request in self.asked]
        waiting = list(self.engine._line._waiting)
        assert waiting == [request for request in order if request in waiting]
        for held in self.held:
            assert all(order.index(held) < order.index(other) for other in waiting)

    @invariant()
    def tokens_are_those_of_each_alone_and_are_never_taken_back(self) -> None:
        for wish, request in self.asked:
            tokens, whole = request.tokens, _expected_of_wishes()[wish]
            before = self.seen.get(request, [])
            assert tokens[: len(before)] == before
            assert tokens == whole[: len(tokens)]
            self.seen[request] = tokens
            if request.is_done and request.result().finish_reason != "cancelled":
                assert tokens == whole

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.run()
            assert not self.open
            self.tokens_are_those_of_each_alone_and_are_never_taken_back()


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None
)
