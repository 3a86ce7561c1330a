"""A run over several devices comes to what it comes to on one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from haiku_mqa.training import train
from haiku_mqa.training.run.events import Stepped
from tests.training.run.runs import CONFIG, CORPUS, longer

CLOSE = 1e-4  # of losses after some steps, which rounding takes apart


def losses(**options):
    events = []
    result = train(CONFIG, CORPUS, on_event=events.append, **options)
    told = [e.metrics.loss for e in events if isinstance(e, Stepped)]
    return result, np.array(told)


@pytest.fixture(scope="module")
def alone():
    return losses()


@pytest.mark.parametrize("mesh", ["data=2", "data=2,tensor=2", "fsdp=2,tensor=2"])
def test_losses_are_those_of_one_device(alone, mesh):
    result, told = losses(mesh=mesh)
    np.testing.assert_allclose(told, alone[1], rtol=CLOSE)
    for ours, theirs in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(alone[0].params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=CLOSE)


def test_what_a_run_comes_to_is_a_plain_model(alone):
    result, _ = losses(mesh="tensor=2")
    assert result.model == alone[0].model


@pytest.mark.parametrize("other", [None, "fsdp=2", "tensor=2"])
def test_run_goes_on_over_any_other_mesh(alone, other, tmp_path):
    stopped = 0

    class Enough(Exception):
        pass

    def stop(event):
        nonlocal stopped
        if isinstance(event, Stepped) and event.step == 2 * CONFIG.checkpoint_every:
            stopped = event.step
            raise Enough

    with pytest.raises(Enough):
        train(CONFIG, CORPUS, out=tmp_path / "run", mesh="data=2", on_event=stop)
    _, told = losses(out=tmp_path / "run", mesh=other)
    np.testing.assert_allclose(told, alone[1][-len(told) :], rtol=CLOSE)
    assert stopped
    assert len(told) < len(alone[1])


def test_rows_that_no_mesh_divides_are_refused_before_anything_is_written(tmp_path):
    rows = CONFIG.data.batch_size
    with pytest.raises(ValueError, match=f"the rows of a batch, got {rows}"):
        train(longer(5), CORPUS, out=tmp_path / "run", mesh="data=8")
    assert not list(tmp_path.glob("run/*.json"))
