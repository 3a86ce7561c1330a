"""Virtual devices, that programs are compiled for and never run on."""

from __future__ import annotations

import contextlib


def have_devices(count: int) -> None:
    """Has JAX make so many devices to compile for, none of which computes.

    Args:
      count: How many at least; more that were asked for before stay.
    """
    import jax

    with contextlib.suppress(RuntimeError):  # it has made some already
        jax.config.update("jax_platforms", "cpu")
        # JAX makes its options' attributes as it is imported: no checker knows them.
        made = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", max(count, made))
