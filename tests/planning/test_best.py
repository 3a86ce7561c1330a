"""Of a number of devices a plan takes the best mesh."""

from __future__ import annotations

import dataclasses

import pytest

import haiku_mqa as hm
from haiku_mqa.planning import DEVICES, best, best_plan, make_plan
from haiku_mqa.planning.best import meshes_of

SMALL = hm.DecoderConfig(
    vocab_size=64, num_layers=1, num_heads=4, d_model=32, d_ff=64, max_length=32
)
SIZES = {"batch": 4, "context": 16}


@pytest.fixture
def compiled_for(monkeypatch):
    """The meshes that were compiled for, in their order."""
    meshes = []

    def counted(config, mesh, *args, **options):
        meshes.append(mesh)
        return make_plan(config, mesh, *args, **options)

    monkeypatch.setattr(best, "make_plan", counted)
    return meshes


def test_meshes_are_those_that_divide():
    assert meshes_of(SMALL, 4, batch=4, stage="train") == [
        *("data=4", "fsdp=4", "data=2,tensor=2", "fsdp=2,tensor=2", "tensor=4"),
    ]
    assert meshes_of(SMALL, 8, batch=4, stage="decode") == [
        *("data=4,tensor=2", "data=2,tensor=4"),
    ]
    assert meshes_of(SMALL, 32, batch=4, stage="train") == []


def test_best_is_the_fastest_of_all_that_fit():
    # A network so slow that what is sent decides.
    device = dataclasses.replace(DEVICES["h100"], network=1e3)
    found = best_plan(SMALL, 2, device, stage="decode", **SIZES)
    every = [
        make_plan(SMALL, mesh, device, stages=("decode",), **SIZES)
        for mesh in meshes_of(SMALL, 2, batch=4, stage="decode")
    ]
    assert found.stages[0].seconds == min(plan.stages[0].seconds for plan in every)
    assert found.mesh["data"] == 2  # which sends nothing


def test_what_cannot_be_faster_is_not_compiled(compiled_for):
    device = dataclasses.replace(DEVICES["h100"], network=1e18)
    found = best_plan(SMALL, 2, device, stage="decode", **SIZES)
    assert found.stages[0].binds == "memory"
    assert len(compiled_for) == 1


def test_where_nothing_fits_the_one_that_holds_least_is_told(compiled_for):
    device = dataclasses.replace(DEVICES["h100"], memory=10)
    found = best_plan(SMALL, 2, device, **SIZES)
    assert not found.fits(found.stages[0])
    assert found.mesh["data"] == 1  # which holds all of the optimizer's state twice
    assert len(compiled_for) == 1
