"""Meshes: the devices, along axes that have names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from haiku_mqa._arguments import whole_number
from haiku_mqa.errors import unknown_name

AXES = ("data", "fsdp", "tensor")
"""``data`` splits rows, ``fsdp`` rows and parameters, ``tensor`` heads and d_ff."""


def mesh_sizes(sizes: str | Mapping[str, int]) -> dict[str, int]:
    """Returns how many devices each axis of a mesh has.

    Args:
      sizes: Axis to size, or the same as text: ``"data=2,tensor=4"``. Axes that are
        left out have one device.

    Returns:
      All of ``AXES``, in their order.

    Raises:
      ValueError: An axis is not known or named twice, or a size is no whole number of
        at least one.

    Example:
      >>> mesh_sizes("tensor=4,data=2")
      {'data': 2, 'fsdp': 1, 'tensor': 4}
    """
    given = _read(sizes) if isinstance(sizes, str) else dict(sizes)
    for axis in given:
        if axis not in AXES:
            raise unknown_name("mesh axis", str(axis), AXES)
    return {axis: whole_number(f"mesh {axis}", given.get(axis, 1)) for axis in AXES}


def _read(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        axis, equals, size = (word.strip() for word in part.partition("="))
        if not equals or not (size.isascii() and size.isdigit()):
            raise ValueError(
                f"mesh must be written as data=2,tensor=4, got {part!r} in {text!r}"
            )
        if axis in sizes:
            raise ValueError(f"mesh names {axis!r} twice: {text!r}")
        sizes[axis] = int(size)
    return sizes


def make_mesh(
    sizes: str | Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns a mesh of the first devices that there are.

    Args:
      sizes: As ``mesh_sizes``.
      devices: Which to use; all that JAX sees if ``None``.

    Returns:
      The mesh, with all of ``AXES``.

    Raises:
      ValueError: The sizes are wrong, there are fewer devices, or those of a process
        are left out.

    Example:
      >>> dict(make_mesh("data=1").shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    shape = mesh_sizes(sizes)
    found = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape.values())
    if needed > len(found):
        kinds = ", ".join(sorted({device.platform for device in found}))
        raise ValueError(
            f"mesh {written(shape)} needs {needed} devices, and there "
            f"{'is' if len(found) == 1 else 'are'} {len(found)} ({kinds})"
        )
    used = found[:needed]
    left_out = {d.process_index for d in found} - {d.process_index for d in used}
    if left_out:
        raise ValueError(
            f"mesh {written(shape)} needs {needed} of {len(found)} devices, and must "
            f"need some of each process; it leaves out process {min(left_out)}"
        )
    return Mesh(np.array(used).reshape(tuple(shape.values())), AXES)


def written(shape: Mapping[str, int]) -> str:
    """Returns the sizes of a mesh as text, as ``mesh_sizes`` reads them.

    Args:
      shape: Axis to size.

    Example:
      >>> written({"data": 1, "tensor": 4}), written({"data": 1})
      ('tensor=4', 'data=1')
    """
    several = [f"{axis}={size}" for axis, size in shape.items() if size > 1]
    return ",".join(several) or "data=1"
