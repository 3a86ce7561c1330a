"""Accelerators, as their makers describe them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What one device has and can do at best; no program reaches all of it.

    Attributes:
      name: As a user writes it.
      memory: Bytes.
      compute: Operations a second of bfloat16 matrix products, without sparsity.
      bandwidth: Bytes a second to and from its memory.
      network: Bytes a second to its neighbours, in each direction.

    Example:
      >>> DEVICES["h100"].memory // 10**9
      80
    """

    name: str
    memory: int
    compute: float
    bandwidth: float
    network: float


def _device(
    name: str, gigabytes: float, teraflops: float, terabytes: float, network: float
) -> Device:
    return Device(
        name=name,
        memory=int(gigabytes * 10**9),
        compute=teraflops * 1e12,
        bandwidth=terabytes * 1e12,
        network=network * 1e9,
    )


# Of the makers' data sheets. TPUs' memory is in GiB there.
DEVICES = {
    device.name: device
    for device in (
        _device("a100", 80, 312, 2.039, 300),
        _device("h100", 80, 989, 3.35, 450),
        _device("h200", 141, 989, 4.8, 450),
        _device("tpu-v4", 32 * 1.073741824, 275, 1.2, 150),
        _device("tpu-v5e", 16 * 1.073741824, 197, 0.819, 100),
        _device("tpu-v5p", 95 * 1.073741824, 459, 2.765, 300),
    )
}
"""Accelerators by name, from their makers' data sheets."""
