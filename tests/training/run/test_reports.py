"""What a run writes of itself, and what of it is left when it goes on."""

from __future__ import annotations

import builtins
import errno
import json
import os
import sys
import time

import pytest

from haiku_mqa.training import train
from haiku_mqa.training.run import plot_loss as plot_room
from haiku_mqa.training.run import reports as reports_room
from haiku_mqa.training.run.events import (
    Evaluated,
    Sampled,
    Saved,
    Started,
    StepMetrics,
    Stepped,
)
from haiku_mqa.training.run.reports import Reports, TensorBoard, read_metrics
from tests.training.run.runs import CONFIG, CORPUS, longer

TEXT = "\nto be\r\nor\u2028=== step 9, 2 characters ===\n"
PNG = b"\x89PNG\r\n\x1a\n"


def stepped(step, loss=2.5, skipped=False):
    return Stepped(step, StepMetrics(loss, 1.5, 1e-3, 32, skipped), 1000.0)


def reports_of(folder, step=0, **changes):
    reports = Reports(folder, longer(100, **changes))
    reports.resume_at(step)
    return reports


def lines_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


# --- Metrics --------------------------------------------------------------------------


def test_line_of_a_step_has_its_numbers_and_the_time(tmp_path):
    reports = reports_of(tmp_path)
    reports(stepped(1))
    [line] = map(json.loads, lines_of(tmp_path))
    assert 0 <= line.pop("seconds") < 60
    assert line == {
        "step": 1,
        "loss": 2.5,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
        "tokens": 32,
        "skipped": False,
    }
    reports.close()


def test_line_of_an_evaluation_has_its_loss(tmp_path):
    reports = reports_of(tmp_path)
    reports(Evaluated(4, 2.25, is_best=True))
    assert lines_of(tmp_path) == [
        '{"step": 4, "validation_loss": 2.25, "is_best": true}'
    ]
    reports.close()


def test_lines_come_every_log_every_steps_and_at_the_last(tmp_path):
    reports = reports_of(tmp_path, log_every=30)
    for step in range(1, 101):
        reports(stepped(step))
    reports.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [30, 60, 90, 100]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    reports = reports_of(tmp_path)
    reports(stepped(1, loss=float("nan"), skipped=True))
    reports(Evaluated(1, float("inf"), is_best=False))
    reports.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    first, second = [
        json.loads(line, parse_constant=refuse) for line in lines_of(tmp_path)
    ]
    assert first["loss"] is None
    assert first["skipped"] is True
    assert second["validation_loss"] is None


def test_lines_of_later_steps_are_dropped_when_a_run_goes_on(tmp_path):
    reports = reports_of(tmp_path)
    for step in range(1, 7):
        reports(stepped(step))
        if step % 2 == 0:
            reports(Evaluated(step, 2.0, is_best=True))
    reports.close()
    before = lines_of(tmp_path)
    reports = reports_of(tmp_path, step=4)
    reports.close()
    assert lines_of(tmp_path) == before[:6]
    reports_of(tmp_path, step=0).close()
    assert lines_of(tmp_path) == []


@pytest.mark.parametrize("end", [b'{"step": 3, "lo', b"\xff\x00", b"null\n", b"\n\n"])
def test_what_a_kill_left_half_written_is_dropped(tmp_path, end):
    reports = reports_of(tmp_path)
    reports(stepped(1))
    reports.close()
    before = lines_of(tmp_path)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(end)
    reports = reports_of(tmp_path, step=5)
    reports(stepped(6))
    reports.close()
    assert lines_of(tmp_path)[:1] == before
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 6]


def test_seconds_go_on_from_those_before(tmp_path):
    line = {"step": 1, "loss": 2.0, "seconds": 1000.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    reports = reports_of(tmp_path, step=1)
    reports(stepped(2))
    reports.close()
    assert 1000.5 <= read_metrics(tmp_path)[-1]["seconds"] < 1060


def test_lines_are_there_for_whoever_reads_along(tmp_path):
    reports = reports_of(tmp_path)
    for step in (1, 2, 3):
        reports(stepped(step))
        assert len(lines_of(tmp_path)) == step
    reports.close()


def test_lines_are_on_the_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    reports = reports_of(tmp_path, checkpoint_every=2)
    del synced[:]
    reports(stepped(1))
    assert not synced
    reports(stepped(2))
    assert len(synced) == 1
    reports.close()


def test_full_disk_is_told_with_the_file(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    reports = reports_of(tmp_path)
    reports._metrics.close()
    reports._metrics = Full()
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written: No spac"):
        reports(stepped(1))


def test_events_that_need_no_line_write_none(tmp_path):
    reports = reports_of(tmp_path)
    reports(Saved(4, tmp_path))
    reports.close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}
    assert lines_of(tmp_path) == []


# --- Samples --------------------------------------------------------------------------


def test_samples_stand_one_after_another_as_they_are(tmp_path):
    reports = reports_of(tmp_path)
    reports(Sampled(4, TEXT))
    reports(Sampled(8, "é"))
    reports.close()
    assert (tmp_path / "samples.txt").read_bytes().decode() == (
        f"=== step 4, {len(TEXT)} characters ===\n{TEXT}\n\n"
        "=== step 8, 1 character ===\né\n\n"
    )


@pytest.mark.parametrize(("step", "left"), [(0, 0), (7, 1), (8, 2), (100, 3)])
def test_samples_of_later_steps_are_dropped_whatever_is_in_them(tmp_path, step, left):
    reports = reports_of(tmp_path)
    ends = [0]
    for number in (4, 8, 12):
        reports(Sampled(number, TEXT))
        ends.append((tmp_path / "samples.txt").stat().st_size)
    reports.close()
    whole = (tmp_path / "samples.txt").read_bytes()
    reports_of(tmp_path, step=step).close()
    assert (tmp_path / "samples.txt").read_bytes() == whole[: ends[left]]


@pytest.mark.parametrize("cut", [1, 3, 10, 40])
def test_sample_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    reports = reports_of(tmp_path)
    reports(Sampled(4, "to be"))
    before = (tmp_path / "samples.txt").read_bytes()
    reports(Sampled(8, "or not to bé"))
    reports.close()
    whole = (tmp_path / "samples.txt").read_bytes()
    (tmp_path / "samples.txt").write_bytes(whole[:-cut])
    reports_of(tmp_path, step=8).close()
    assert (tmp_path / "samples.txt").read_bytes() == before


# --- Picture --------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """What pictures were drawn of, as often as they were."""
    calls = []

    def draw(path, title, train, validation):
        calls.append((path.name, title, list(train), list(validation)))
        path.write_bytes(PNG)

    monkeypatch.setattr(plot_room, "plot_loss", draw)
    return calls


def test_picture_is_of_all_losses_so_far(tmp_path, drawn):
    reports = reports_of(tmp_path)
    reports(stepped(1, loss=3.0))
    reports(stepped(2, loss=float("nan"), skipped=True))
    reports(Evaluated(2, 2.0, is_best=True))
    assert drawn == [("loss.png", tmp_path.name, [(1, 3.0)], [(2, 2.0)])]
    reports.close()


def test_picture_is_not_drawn_all_the_time_but_is_whole_at_the_end(tmp_path, drawn):
    reports = reports_of(tmp_path)
    for step in range(1, 50):
        reports(Evaluated(step, 2.0, is_best=False))
    assert len(drawn) == 1
    reports.close()
    assert [len(points) for *_, points in drawn] == [1, 49]


def test_picture_is_drawn_again_after_a_while(tmp_path, drawn, monkeypatch):
    reports = reports_of(tmp_path)
    reports(Evaluated(1, 2.0, is_best=True))
    later = time.perf_counter() + 60
    monkeypatch.setattr(reports_room.time, "perf_counter", lambda: later)
    reports(Evaluated(2, 2.0, is_best=False))
    assert len(drawn) == 2
    reports.close()
    assert len(drawn) == 2


def test_picture_goes_on_from_the_losses_before(tmp_path, drawn):
    reports = reports_of(tmp_path)
    reports(stepped(1))
    reports(Evaluated(1, 2.0, is_best=True))
    reports.close()
    reports = reports_of(tmp_path, step=1)
    reports(Evaluated(2, 1.5, is_best=True))
    reports.close()
    assert drawn[-1][2:] == ([(1, 2.5)], [(1, 2.0), (2, 1.5)])


def test_finished_run_draws_nothing_unless_its_picture_is_old(tmp_path, drawn):
    reports = reports_of(tmp_path)
    reports(Evaluated(1, 2.0, is_best=True))
    reports.close()
    reports_of(tmp_path, step=1).close()
    assert len(drawn) == 1
    os.utime(tmp_path / "loss.png", (1, 1))
    reports_of(tmp_path, step=1).close()
    assert len(drawn) == 2


def test_picture_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plot_room, "plot_loss", full)
    reports = reports_of(tmp_path)
    reports(Evaluated(1, 2.0, is_best=True))
    reports.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


# --- A whole run ----------------------------------------------------------------------


def test_run_writes_metrics_samples_and_a_picture(tmp_path):
    config = longer(8, sample_every=4)
    train(config, CORPUS, out=tmp_path, sample=lambda *_: "to be")
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "is_best" in line] == [4, 8]
    assert (tmp_path / "samples.txt").read_text().count("to be\n\n") == 2
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


# --- TensorBoard ----------------------------------------------------------------------


def begun(step=0):
    decoder = CONFIG.decoder_config(15)
    return Started(CONFIG, decoder, 100, 700, 80, 100, step)


def scalars_of(folder):
    """Returns (name, step, value) of all that TensorBoard would read."""
    from tensorboardX import proto

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = proto.event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[12 + size + 4 :]
    return found


def test_tensorboard_gets_losses_every_so_many_steps_and_samples(tmp_path):
    board = TensorBoard(tmp_path, every=2)
    board(begun())
    for step in (1, 2):
        board(stepped(step))
    board(Evaluated(2, 2.25, is_best=True))
    board(Sampled(2, "to be"))
    board(Saved(2, tmp_path))
    board.close()
    found = scalars_of(tmp_path)
    assert ("loss", 2, 2.5) in found
    assert ("grad_norm", 2, 1.5) in found
    assert ("validation_loss", 2, 2.25) in found
    assert "sample/text_summary" in {name for name, _, _ in found}
    assert {step for _, step, _ in found} == {2}


def test_tensorboard_writes_nothing_of_a_finished_run(tmp_path):
    board = TensorBoard(tmp_path)
    board(begun(step=100))
    board.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_without_its_extra_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError):
        TensorBoard(tmp_path)


def test_tensorboard_is_not_imported_unless_it_is_asked_for(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **options):
        assert not name.startswith("tensorboardX")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    reports = reports_of(tmp_path)
    reports(stepped(1))
    reports.close()
