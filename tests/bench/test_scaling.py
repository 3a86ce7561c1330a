"""Scaling and plans as benches: what is asked, and what figures become of answers."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from haiku_mqa.bench.joined import Joined
from haiku_mqa.bench.plans import Case, run_plans
from haiku_mqa.bench.scaling import SHAPE, run_scaling, speed_up

TINY = dataclasses.replace(
    SHAPE, vocab_size=32, num_layers=1, num_heads=2, d_model=8, d_ff=8, max_length=8
)


class Scripted:
    """Processes that take as long as they are told: a second for each row of one."""

    def __init__(self, count, settings):
        self.count, self.closed = count, False

    def ask(self, do, **words):
        if do == "reduce":
            return [{"seconds": [4.0, 2.0]}] * self.count
        if do == "limits":
            return [{"products": 1e3 / (i + 1), "memory": 1e9} for i in range(2)]
        seconds = words["rows"] / (1.5 if self.count == 2 else 1)
        return [{"seconds": [seconds, seconds], "loss": 1.0}] * self.count

    def close(self):
        self.closed = True


def test_speed_up_and_bound_are_those_of_what_was_measured():
    found = run_scaling(
        rows=2, repeats=1, shape=TINY, meshes=("data=2",), start=Scripted
    )
    alone, strong, weak = found.data["cases"]
    assert speed_up(strong, alone) == speed_up(weak, alone) == 1.5
    assert [row[6:8] for row in found.rows[1:3]] == [("1.50x", "75%")] * 2
    assert (strong["rows"], weak["rows"]) == (2, 4)
    assert (strong["rows_of_a_process"], weak["rows_of_a_process"]) == (1, 2)
    # The slower of two cores computes, and of several sums the fastest counts.
    assert weak["at_best"]["compute"] == pytest.approx(2 * strong["at_best"]["compute"])
    assert alone["at_best"]["compute"] == pytest.approx(
        2 * strong["at_best"]["compute"]
    )
    network = 4 * found.data["parameters"] / 2.0
    assert strong["at_best"]["network"] == strong["sent_bytes"] / network
    assert alone["at_best"]["network"] == 0


def test_processes_train_as_one_and_are_timed():
    with contextlib.closing(
        Joined(2, {"config": TINY.to_dict(), "context": 8})
    ) as both:
        one, other = both.ask("train", mesh="fsdp=2", rows=2, steps=2)
        sums = both.ask("reduce", count=8, times=1)
    assert one["loss"] == other["loss"]
    assert len(one["seconds"]) == len(other["seconds"]) == 2
    assert all(each["seconds"][0] > 0 for each in sums)


def test_what_a_process_held_is_told_beside_the_plan():
    cases = (Case("decode", "data=1", 1, 2, 8), Case("decode", "data=2", 2, 2, 8))
    peaks = iter([300, 100, 200] * 2)
    found = run_plans(
        repeats=3, shape=TINY, cases=cases, run=lambda words: {"peak": next(peaks)}
    )
    one, two = found.data["cases"]
    assert one["measured_bytes"] == 200
    assert one["ratio"] == 200 / one["planned_bytes"]
    assert two["argument_bytes"] > one["argument_bytes"]  # parameters, twice
