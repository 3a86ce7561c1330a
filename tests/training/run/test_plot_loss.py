"""The picture of a run's losses: whatever there is to draw, and whole."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from haiku_mqa.training.run.plot_loss import plot_loss, smoothed

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("train_points", "validation"),
    [
        ([], []),
        ([(10, 4.2)], []),
        ([], [(1, 2.0)]),
        ([(1, 4.0), (2, 3.0)], [(2, 3.0)]),
        ([(n, 4.2 - n / 1000) for n in range(1, 2001)], [(n, 2.5) for n in range(99)]),
        ([(1, 1e6), (2, 20.0)], [(2, 1e-9), (3, 700.0)]),
    ],
    ids=["nothing", "a step", "an evaluation", "two", "many", "far apart"],
)
def test_picture_can_be_drawn_of_few_and_many(tmp_path, train_points, validation):
    path = tmp_path / "loss.png"
    plot_loss(path, "a $run$ of _mine_", train_points, validation)
    assert path.read_bytes().startswith(PNG)
    assert [each.name for each in tmp_path.iterdir()] == ["loss.png"]


def test_picture_stays_whole_where_the_next_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    plot_loss(path, "run", [], [(1, 2.0)])
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plot_loss(path, "run", [], [(1, 2.0), (2, 1.0)])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["loss.png"]


def test_smooth_losses_lie_among_the_raw_ones_and_follow_them():
    steps = np.arange(1, 2001)
    fall = 2 + 2 * np.exp(-steps / 100)
    noise = 0.2 * np.random.default_rng(0).standard_normal(2000)
    smooth = smoothed(fall + noise)
    assert smooth.shape == (2000,)
    # Noise is a fifth of a nat; four fifths of it are gone, and the fall is not.
    assert np.abs(smooth - fall)[100:].max() < 0.1
    assert np.abs(smoothed(fall) - fall).max() < 0.05
