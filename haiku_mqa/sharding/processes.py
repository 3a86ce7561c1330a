"""Several processes that train or generate as one, joined by ``jax.distributed``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from haiku_mqa.errors import ProcessError
from haiku_mqa.sharding.meeting import meet

JOINING = 60  # seconds that processes wait for each other at the start
HEARTBEAT = 10  # seconds without a word, after which a process is given up
_DONE, _FAILED = 1, 2


def join(
    coordinator: str, num_processes: int, process_id: int, *, seconds: int = JOINING
) -> None:
    """Joins this process to the others, before JAX looks at any device.

    Args:
      coordinator: Host and port at which process 0 listens.
      num_processes: How many there are.
      process_id: Which this is, from zero.
      seconds: How long to wait for the others.

    Raises:
      ValueError: There is no such process, or the coordinator is no host and port.
      ProcessError: They did not all come in time, or the coordinator cannot be reached.
    """
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be from 0 to {num_processes - 1}, got {process_id}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ValueError(f"coordinator must be HOST:PORT, got {coordinator!r}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        end = time.monotonic() + seconds
        meet(host.strip("[]"), int(port), num_processes, process_id, end)
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (OSError, RuntimeError) as error:
        raise ProcessError(
            f"process {process_id} of {num_processes} did not meet all others at "
            f"{coordinator} within {seconds} s: {str(error).splitlines()[0]}"
        ) from error


def is_first() -> bool:
    """Returns whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Returns whether there is no other process."""
    return jax.process_count() == 1


def fetched(tree: Any) -> Any:
    """Returns arrays as NumPy's, whole in every process; all must call it.

    Args:
      tree: Arrays, wherever they lie.
    """
    if is_alone():
        return jax.tree.map(np.array, tree)
    return jax.tree.map(lambda leaf: np.array(_whole(leaf)), tree)


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    # Only a mesh lays an array over processes here.
    mesh = cast(NamedSharding, leaf.sharding).mesh
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(_same, out_shardings=everywhere)(leaf).addressable_data(0)


def _same(leaf: Any) -> Any:
    return leaf


def put(tree: Any, where: Any) -> Any:
    """Returns arrays that lie where they should; each process puts its own part.

    Args:
      tree: Arrays that every process has whole.
      where: For each its sharding.
    """
    if is_alone():
        return jax.device_put(tree, where)
    return jax.tree.map(_put, tree, where)


def _put(leaf: Any, where: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        placed = jax.make_array_from_callback(data.shape, where, lambda at: data[at])
        return jax.random.wrap_key_data(placed)
    whole = np.asarray(_whole(leaf))
    return jax.make_array_from_callback(whole.shape, where, lambda at: whole[at])


def put_rows(batch: Any, where: NamedSharding, count: int) -> Any:
    """Returns a batch over the devices; each process puts the rows that it made.

    Args:
      batch: Arrays with all rows, or with those that ``Layout.rows_here`` tells.
      where: The sharding of its rows.
      count: B, rows over all processes.
    """
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            where, leaf, (count, *leaf.shape[1:])
        ),
        batch,
    )


def on_device(tree: Any) -> Any:
    """Returns arrays on the device, and those that lie over processes as they are.

    Args:
      tree: Arrays, NumPy's too.
    """
    return jax.device_put(tree) if is_alone() else tree


def largest(number: int) -> int:
    """Returns the largest of the numbers that the processes have; all must call it.

    Args:
      number: This one's.
    """
    if is_alone():
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Has the first process do what is inside, and then the others.

    Yields:
      Nothing.

    Raises:
      ProcessError: In the others, where the first failed.
    """
    if is_alone():
        yield
        return
    if not is_first():
        if largest(0) != _DONE:
            raise ProcessError("the first process could not begin; it says why")
        yield
        return
    try:
        yield
    except BaseException:
        largest(_FAILED)
        raise
    largest(_DONE)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Has what is inside succeed in all processes, or fail in all; all must enter it.

    Each leaves it when all are done.

    Yields:
      Nothing.

    Raises:
      ProcessError: In those that did not fail, where another did.
    """
    try:
        yield
    except Exception:
        largest(_FAILED)
        raise
    if largest(_DONE) == _FAILED:
        raise ProcessError("another process failed; it says why")


@contextlib.contextmanager
def loss_told(advice: str) -> Iterator[None]:
    """Tells in one line that another process is gone, where that breaks what is inside.

    Args:
      advice: What to do then.

    Yields:
      Nothing.

    Raises:
      ProcessError: It is.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_alone():
            raise
        raise ProcessError(
            f"process {jax.process_index()} lost another one: "
            f"{str(error).splitlines()[0][:200]}; {advice}"
        ) from error
