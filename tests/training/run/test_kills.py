from __future__ import annotations

from tests.training.run.kill_table import Killer

KILLS, LEAST_IN_SAVES = 20, 3


def test_run_that_is_killed_anywhere_is_the_run_never_killed(tmp_path, cache):
    tally = Killer(tmp_path, cache, seed=1).kill(KILLS)
    print(tally.rows())
    assert tally.kills == KILLS
    assert tally.in_saves >= LEAST_IN_SAVES
    assert tally.resumed
    assert tally.losses > tally.again > 0
    assert (tally.mismatches, tally.lost, tally.unequal) == (0, 0, 0)
