from __future__ import annotations

import os
import signal
import threading

import jax
import numpy as np
import pytest

from haiku_mqa import model_folder
from haiku_mqa.training import train
from haiku_mqa.training.run.events import Stepped
from haiku_mqa.training.run.signals import stop_requests
from tests.training.run.runs import CORPUS, Child, longer, metrics_of

SIGNALS = [signal.SIGINT, signal.SIGTERM]
both = pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])


@pytest.fixture(autouse=True)
def usual_handlers():
    """As in a foreground shell, and as they were afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# --- A run in a process of its own ----------------------------------------------------


@both
def test_signal_ends_the_run_after_its_step_and_it_can_go_on(tmp_path, cache, number):
    child = Child(tmp_path / "run", cache, steps=9, every=100, pace=0.1)
    assert child.wait_for("step 3"), child.errors
    child.process.send_signal(number)
    assert child.end() == 0, child.errors
    assert f"stopped {number.name}" in child.lines
    steps = [line for line in child.lines if line.startswith("step ")]
    last = int(steps[-1].split()[1])
    assert 3 <= last < 9
    assert [line for line in child.lines if "saved" in line] == [f"saved {last}"]

    again = Child(tmp_path / "run", cache, steps=9, every=100)
    assert again.end() == 0, again.errors
    assert again.lines[1] == f"from {last}"
    assert again.lines[-2] == "stopped None"
    whole = Child(tmp_path / "whole", cache, steps=9, every=100)
    assert whole.end() == 0, whole.errors
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


@both
def test_second_signal_acts_at_once(tmp_path, cache, number):
    child = Child(tmp_path / "run", cache, steps=9, every=100, pace=30)
    assert child.wait_for("step 1"), child.errors
    child.process.send_signal(number)
    with pytest.raises(Exception, match="timed out"):
        child.process.wait(0.5)  # it was asked, and is still at its step
    child.process.send_signal(number)
    assert child.end(seconds=10) == -number, child.errors
    assert not any("saved" in line for line in child.lines)

    again = Child(tmp_path / "run", cache, steps=5, every=100)
    assert again.end() != 0
    assert "optimizer.total_steps: 9 in the folder, 5 asked for" in again.errors


# --- A run in this process ------------------------------------------------------------


def _interrupt_at(step):
    def on_event(event):
        if isinstance(event, Stepped) and event.step == step:
            signal.raise_signal(signal.SIGINT)

    return on_event


def test_interrupted_run_returns_what_it_has():
    result = train(longer(9, eval_every=100), CORPUS, on_event=_interrupt_at(3))
    assert result.stopped == "SIGINT"
    assert result.history[-1].step in (3, 4)
    assert {x.shape for x in jax.tree.leaves(result.params)}


def test_folder_of_an_interrupted_run_has_weights_before_any_was_judged(tmp_path):
    config = longer(9, eval_every=100, checkpoint_every=100)
    result = train(config, CORPUS, out=tmp_path, on_event=_interrupt_at(3))
    kept = model_folder.read_weights(tmp_path, result.model.config)
    jax.tree.map(np.testing.assert_array_equal, kept, result.params)
    again = train(config, CORPUS, out=tmp_path)
    kept = model_folder.read_weights(tmp_path, result.model.config)
    jax.tree.map(np.testing.assert_array_equal, kept, again.params)
    assert again.stopped is None


def test_interrupt_in_the_last_step_is_no_stop():
    result = train(longer(4), CORPUS, on_event=_interrupt_at(4))
    assert result.stopped is None


# --- The request ----------------------------------------------------------------------


@both
def test_first_signal_asks_and_gives_the_handlers_back(number):
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_requests() as request:
        assert request.name is None
        signal.raise_signal(number)
        assert request.name == number.name
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_second_interrupt_is_a_keyboard_interrupt():
    def twice():
        with stop_requests():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_handlers_are_back_however_the_run_ends():
    before = [signal.getsignal(number) for number in SIGNALS]
    inside = []

    def fail():
        with stop_requests():
            inside.extend(signal.getsignal(number) for number in SIGNALS)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert not set(inside) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signal_that_was_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.name is None
        signal.raise_signal(signal.SIGTERM)
    assert request.name == "SIGTERM"


def test_no_handler_is_touched_outside_the_main_thread():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def inside():
        with stop_requests() as request:
            seen.append(request.name)
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [None, *before]
