"""``haiku-mqa plan``: a table of what a mesh would hold, send and take."""

from __future__ import annotations

import json

import pytest


def test_plan_of_a_model_of_the_zoo_is_told_and_written(run, tmp_path):
    file = tmp_path / "plan.json"
    done = run(
        "plan",
        *("--model", "mqa-decoder", "--mesh", "data=2,tensor=4", "--device", "a100"),
        *("--batch", 8, "--context", 64, "--stages", "train", "decode"),
        *("--json", file),
    )
    assert done.code == 0
    assert "mqa-decoder on 8 a100, data=2,tensor=4: 8 rows of 64 tokens" in done.out
    stages = [line.split()[0] for line in done.out.splitlines() if "yes" in line]
    assert stages == ["train", "decode"]
    plan = json.loads(file.read_text())
    assert plan["mesh"] == {"data": 2, "fsdp": 1, "tensor": 4}
    assert [stage["name"] for stage in plan["stages"]] == ["train", "decode"]


def test_mesh_of_too_many_devices_is_refused_before_anything(run):
    done = run("plan", "--mesh", "data=1024")
    assert done.code == 2
    assert done.error == "--mesh must be of at most 512 devices, got 1024"


def test_time_and_cost_are_drawn_over_devices(run, tmp_path):
    picture, file = tmp_path / "devices.png", tmp_path / "devices.json"
    done = run(
        *("plan", "--model", "mqa-decoder", "--stages", "decode", "--price", 3.6),
        *("--batch", 2, "--context", 16, "--most-devices", 2),
        *("--plot", picture, "--json", file),
    )
    assert done.code == 0, done.err
    assert picture.stat().st_size > 10_000
    data = json.loads(file.read_text())
    assert [point["devices"] for point in data["points"]] == [1, 2]
    for point in data["points"]:
        seconds = point["devices"] * point["seconds"]
        assert point["cost"] == pytest.approx(seconds * 1e-3 / 2 * 1e6)
        assert f" {point['mesh']} " in done.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--mesh", "data=2"), "--plot chooses meshes itself: leave --mesh out"),
        (("--stages", "train", "decode"), "--plot takes one of --stages"),
    ],
)
def test_what_does_not_go_with_a_picture_is_refused(run, tmp_path, words, told):
    done = run("plan", "--plot", tmp_path / "devices.png", *words)
    assert done.code == 2
    assert told in done.error


def test_unknown_preset_is_refused_as_a_model_is(run):
    done = run("plan", "--model", "llama-3-8", "--mesh", "data=1")
    assert done.code == 2
    assert "unknown model 'llama-3-8'" in done.error


def test_presets_and_devices_are_those_of_the_help(run):
    from haiku_mqa.cli import plan
    from haiku_mqa.planning import DEVICES, PRESETS

    assert tuple(PRESETS) == plan._PRESETS
    assert tuple(DEVICES) == plan._DEVICES
