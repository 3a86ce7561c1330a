"""``haiku-mqa`` in a process that is watched: ``python -m tests.sharding.child WORDS``.

``NOTES`` names a file for the rows of batches that it makes, ``SLOW`` the seconds by
which a checkpoint takes longer, ``FULL`` the step at which it finds the disk full.
"""

from __future__ import annotations

import errno
import os
import time

from haiku_mqa.cli import main
from haiku_mqa.training import RandomWindows
from haiku_mqa.training.run import checkpoints, sources


def noted(make):
    def made(*args):
        rows = args[-1]
        with open(os.environ["NOTES"], "a") as notes:
            print(make.__name__, rows and (rows.start, rows.stop), file=notes)
        return make(*args)

    return made


def slow(write):
    def written(path, tree):
        write(path, tree)
        time.sleep(float(os.environ["SLOW"]))

    return written


def full(write):
    def written(path, tree):
        write(path, tree)
        if path.parent.name.startswith(os.environ["FULL"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return written


if "NOTES" in os.environ:
    RandomWindows.batch = noted(RandomWindows.batch)
    sources.validation_batches = noted(sources.validation_batches)
if "SLOW" in os.environ:
    checkpoints.write_parts = slow(checkpoints.write_parts)
if "FULL" in os.environ:
    checkpoints.write_parts = full(checkpoints.write_parts)
if __name__ == "__main__":
    raise SystemExit(main())
