"""A checkpoint's arrays, in orbax's format: each process writes and reads its parts.

None of this waits for another process; whoever calls it does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from haiku_mqa.sharding import processes


def write_parts(path: Path, tree: Any) -> None:
    """Writes what the devices of this process hold of arrays.

    Each process does it, into the same folder; ``join_parts`` comes next, in one.

    Args:
      path: The folder of the arrays, which is there and empty.
      tree: A pytree of arrays.
    """
    import orbax.checkpoint as ocp
    from etils import epath  # the only paths of which orbax can write tables of arrays

    if processes.is_alone():
        # Copies: a view into a device's memory would hinder its donation.
        tree = jax.tree.map(np.array, tree)
    with _quiet():
        ocp.PyTreeCheckpointHandler().save(
            epath.Path(path.absolute()), args=ocp.args.PyTreeSave(tree)
        )


def join_parts(path: Path) -> None:
    """Makes one table of contents of what each process has written.

    Args:
      path: The folder of the arrays.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    with _quiet():
        ocp.PyTreeCheckpointHandler().finalize(epath.Path(path.absolute()))


def read_arrays(path: Path, like: Any) -> Any:
    """Reads arrays; where they lie over devices, only what those of this process hold.

    Args:
      path: The folder of the arrays.
      like: A pytree of the same structure, of arrays or of their shapes; what has a
        sharding is read to where it says, whatever wrote it.

    Returns:
      The pytree, of NumPy's arrays where there is no sharding.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    def restored(leaf: Any) -> Any:
        where = getattr(leaf, "sharding", None)
        if isinstance(leaf, jax.ShapeDtypeStruct) and where is not None:
            return ocp.ArrayRestoreArgs(sharding=where)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    arguments = jax.tree.map(restored, like)
    with _quiet():
        return ocp.PyTreeCheckpointHandler().restore(
            epath.Path(path.absolute()), args=ocp.args.PyTreeRestore(like, arguments)
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("absl")
    before = logger.level
    # Its threads log whole tracebacks of errors that are raised here anyway.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
