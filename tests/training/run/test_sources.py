"""Where the batches of a run come from: asked for, or made ahead of time by grain."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from haiku_mqa.training import train
from haiku_mqa.training.run.sources import batches_from, make_data, make_tokenizer
from tests.training.run.runs import CONFIG, CORPUS

GRAIN = CONFIG.with_settings(["data.loader=grain"])


def _batches(config):
    tokenizer = make_tokenizer(config.data, CORPUS)
    data = make_data(config.data, CORPUS, tokenizer, config.seed)
    return batches_from(config.data, data.train, 0, 100)


@pytest.mark.parametrize("config", [CONFIG, GRAIN], ids=["memory", "grain"])
def test_closed_batches_leave_no_thread_and_no_more_batches(config):
    before = {*threading.enumerate()}
    batches = _batches(config)
    next(batches)
    own = {*threading.enumerate()} - before
    assert bool(own) == (config is GRAIN)
    batches.close()
    deadline = time.monotonic() + 30
    while any(thread.is_alive() for thread in own) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in own)
    assert list(batches) == []


def test_without_grain_the_field_and_the_extra_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match="needs the extra") as caught:
        train(GRAIN, CORPUS, out=tmp_path / "run")
    assert str(caught.value) == (
        "data.loader = 'grain' needs the extra 'grain': pip install 'haiku-mqa[grain]'"
    )
    assert not list(tmp_path.iterdir())  # it is told before anything is written
