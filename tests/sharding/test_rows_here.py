"""Which rows of a batch each of several processes makes, whatever devices it has."""

from __future__ import annotations

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

import haiku_mqa as hm
from haiku_mqa.sharding import AXES, Layout, make_mesh

CONFIG = hm.DecoderConfig(vocab_size=64, num_layers=1, num_heads=8, d_model=32, d_ff=64)


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh looks at."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def rows_of(shape, owners, count):
    """Returns the rows that each process makes, and those that its devices hold."""
    devices = [Device(index, owner) for index, owner in enumerate(owners)]
    mesh = Mesh(np.array(devices).reshape(shape), AXES)
    layout = Layout(CONFIG, mesh)
    held = {owner: set() for owner in owners}
    parts = np.arange(count).reshape(shape[0] * shape[1], -1)
    for part, row in zip(parts, mesh.devices.reshape(-1, shape[2]), strict=True):
        for device in row:
            held[device.process_index] |= {*part.tolist()}
    made = {}
    for owner in held:
        with mock.patch.object(jax, "process_index", lambda owner=owner: owner):
            made[owner] = {*range(count)[layout.rows_here(count)]}
    return made, held


@given(
    shape=st.sampled_from([(8, 1, 1), (2, 2, 2), (1, 4, 2), (2, 1, 4), (1, 1, 8)]),
    owners=st.permutations(range(8)),
    processes=st.integers(1, 8),
)
def test_process_makes_all_rows_that_its_devices_hold(shape, owners, processes):
    made, held = rows_of(shape, [owner % processes for owner in owners], 16)
    assert all(held[owner] <= made[owner] for owner in held)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_process_makes_no_others_where_devices_are_in_their_order(shape, processes):
    made, held = rows_of(shape, np.arange(8) * processes // 8, 16)
    assert made == held


def test_processes_that_share_some_rows_and_not_others_make_all():
    made, _ = rows_of((1, 4, 2), [0, 0, 0, 1, 1, 1, 2, 2], 16)
    assert set(map(len, made.values())) == {16}


def test_mesh_that_leaves_a_process_out_is_refused():
    devices = [Device(0, 0), Device(1, 1)]
    with pytest.raises(ValueError, match=r"mesh data=1 .* leaves out process 1"):
        make_mesh("data=1", devices)
