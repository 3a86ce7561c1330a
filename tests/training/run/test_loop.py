from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from haiku_mqa import build, model_folder
from haiku_mqa.training import (
    Corpus,
    OptimizerConfig,
    make_loss,
    make_train_step,
    validation_batches,
)
from haiku_mqa.training.loss import mean_loss
from haiku_mqa.training.run import checkpoints as checkpoint_room
from haiku_mqa.training.run import loop
from haiku_mqa.training.run.events import (
    Evaluated,
    Sampled,
    Saved,
    Started,
    Stepped,
    Stopped,
)
from haiku_mqa.training.run.folder import RunFolder
from haiku_mqa.training.run.programs import make_programs
from haiku_mqa.training.run.sources import batches_from, make_data, make_tokenizer
from haiku_mqa.training.run.train import train
from tests.training.run.runs import CONFIG, CORPUS, REPOSITORY, longer, metrics_of

SAME = 1e-6
STEPS = CONFIG.optimizer.total_steps
DOCUMENTS = Corpus(
    tuple(f"{n} little documents stood in a row. " * (1 + n % 3) for n in range(30))
)
RUNAWAY = OptimizerConfig(
    schedule="constant",
    warmup_steps=0,
    learning_rate=1e38,
    weight_decay=0.0,
    total_steps=20,
)
RISING = dataclasses.replace(  # whose validation loss ends higher than it was
    CONFIG,
    optimizer=dataclasses.replace(RUNAWAY, learning_rate=2.0, total_steps=STEPS),
    eval_every=1,
    checkpoint_every=1,
    average_decay=None,
)


def _data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


class Crash(Exception):
    pass


def _crash_at(step, kind=Stepped):
    def on_event(event):
        if isinstance(event, kind) and event.step == step:
            raise Crash

    return on_event


def _run(config=CONFIG, corpus=CORPUS, **options):
    events = []
    result = train(config, corpus, on_event=events.append, **options)
    return result, events


def _losses(events):
    return {e.step: e.metrics.loss.hex() for e in events if isinstance(e, Stepped)}


def _of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def _equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return *_run(out=folder), folder


# --- A run that nothing stops ---------------------------------------------------------


def test_run_learns():
    result, events = _run(longer(150, eval_every=150, average_decay=None))
    (told,) = _of(Evaluated, events)
    assert told.validation_loss < 0.5 * events[1].metrics.loss
    np.testing.assert_allclose(
        _validation_loss(CONFIG, result), told.validation_loss, rtol=SAME
    )


def test_events_are_told_in_order(whole):
    result, events, folder = whole
    expected = [("Started", None)]
    for step in range(1, STEPS + 1):
        expected.append(("Stepped", step))
        if step % 4 == 0:
            expected += [("Evaluated", step), ("Saved", step)]
    expected.append(("Stopped", STEPS))
    assert [(type(e).__name__, getattr(e, "step", None)) for e in events] == expected
    started = events[0]
    assert started.num_parameters == sum(x.size for x in jax.tree.leaves(result.params))
    assert (started.first_step, started.total_steps) == (0, STEPS)
    together = CORPUS.num_characters
    assert started.train_tokens + started.validation_tokens == together
    assert events[-1].reason == "finished"
    assert result.stopped is None
    assert result.folder == folder


def test_metrics_are_plain_numbers(whole):
    _, events, _ = whole
    for event in _of(Stepped, events):
        assert [type(x) for x in event.metrics] == [float, float, float, int, bool]
        assert event.metrics.tokens == 4 * 8
        assert event.tokens_per_second > 0
    json.dumps([event.metrics for event in _of(Stepped, events)])


def test_history_has_every_evaluation_and_the_steps_that_are_logged():
    result, _ = _run(dataclasses.replace(CONFIG, log_every=5))
    history = [(type(e).__name__, e.step) for e in result.history]
    assert history == [
        ("Evaluated", 4),
        ("Stepped", 5),
        ("Evaluated", 8),
        ("Stepped", 10),
        ("Stepped", 12),
        ("Evaluated", 12),
    ]


def test_bar_is_only_shown_to_a_terminal(capsys, monkeypatch):
    train(longer(4), CORPUS, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(longer(4), CORPUS, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "loss=" in shown


def test_run_without_a_folder_is_the_same_run(whole):
    result, events = _run()
    assert _losses(events) == _losses(whole[1])
    _equal(result.params, whole[0].params)
    assert result.folder is None
    assert not _of(Saved, events)


def test_run_without_a_folder_needs_no_orbax():
    program = (
        "import sys; from tests.training.run.runs import *; "
        "from haiku_mqa.training.run.train import train; train(longer(3), CORPUS); "
        "print('orbax' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert run.stdout.split() == ["False"], run.stderr


def test_nothing_is_compiled_twice(monkeypatch):
    made = []

    def watched(*arguments):
        made.append(make_programs(*arguments))
        return made[0]

    monkeypatch.setattr(loop, "make_programs", watched)
    _run(sample=lambda *_: "")
    (programs,) = made
    assert programs.step._cache_size() == 1
    assert programs.evaluate.args[0]._cache_size() == 1


# --- What is judged -------------------------------------------------------------------


def _validation_loss(config, result):
    data = make_data(config.data, CORPUS, result.tokenizer, config.seed)
    loss = jax.jit(lambda p, b: make_loss(result.model)(p, b, None))
    batches = validation_batches(data.validation, config.data.seq_len, 3)
    return mean_loss(loss(result.params, batch) for batch in batches)


def test_result_has_the_parameters_of_the_lowest_validation_loss():
    config = dataclasses.replace(RISING, checkpoint_every=100)
    result, events = _run(config)
    told = _of(Evaluated, events)
    losses = [e.validation_loss for e in told]
    assert losses[-1] > min(losses)  # or the last ones would do
    least = [min(losses[: n + 1]) for n in range(len(losses))]
    assert [e.is_best for e in told] == [
        n == 0 or loss < least[n - 1] for n, loss in enumerate(losses)
    ]
    np.testing.assert_allclose(_validation_loss(config, result), min(losses), rtol=SAME)


def test_folder_has_the_best_weights_and_says_whose(whole):
    result, events, folder = whole
    best = min(_of(Evaluated, events), key=lambda e: e.validation_loss)
    _equal(model_folder.read_weights(folder, result.model.config), result.params)
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {
        "step": str(best.step),
        "validation_loss": repr(best.validation_loss),
    }


def test_average_follows_the_parameters_and_leaves_out_what_is_skipped():
    config = dataclasses.replace(CONFIG, average_decay=0.4)
    tokenizer = make_tokenizer(config.data, CORPUS)
    model = build(config.decoder_config(tokenizer.vocab_size))
    source = make_data(config.data, CORPUS, tokenizer, 0).train
    programs, rng = make_programs(model, config), jax.random.key(7)
    carry = programs.init(jax.random.key(0))
    plain = jax.jit(make_train_step(model, config.optimizer))
    state = jax.tree.map(np.array, carry.state)
    expected = jax.tree.map(np.array, carry.average)
    updates = 0
    for step in range(6):
        batch = source.batch(step)
        if step == 3:  # a token that there is not makes the loss NaN
            batch = batch._replace(tokens=np.full_like(batch.tokens, 999))
        state, metrics = plain(state, batch, rng)
        updates += not metrics.skipped
        kept = min(0.4, (1 + updates) / (10 + updates)) if not metrics.skipped else 1
        expected = jax.tree.map(
            lambda a, p, kept=kept: kept * a + (1 - kept) * np.asarray(p),
            expected,
            state.params,
        )
        carry, _ = programs.step(carry, batch, rng)
    assert updates == 5
    for a, b in zip(
        jax.tree.leaves(carry.average), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=SAME)
        assert a.dtype == np.float32
    assert carry.judged is carry.average


def test_sample_is_of_the_judged_parameters_and_is_told():
    asked = []

    def sample(model, params, tokenizer, prompt, count):
        asked.append((prompt, count, jax.tree.map(np.array, params)))
        return prompt + tokenizer.decode([0])

    config = dataclasses.replace(
        CONFIG, sample_every=8, sample_prompt="to", sample_tokens=5
    )
    result, events = _run(config, sample=sample)
    assert [(e.step, e.text) for e in _of(Sampled, events)] == [(8, "to "), (12, "to ")]
    assert [(prompt, count) for prompt, count, _ in asked] == [("to", 5)] * 2
    if _of(Evaluated, events)[-1].is_best:
        _equal(asked[-1][2], result.params)


# --- Going on -------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4, 6, 12])
def test_run_that_crashed_goes_on_bit_for_bit(whole, tmp_path, step):
    result, events, folder = whole
    with pytest.raises(Crash):
        train(CONFIG, CORPUS, out=tmp_path / "run", on_event=_crash_at(step))
    again, told = _run(out=tmp_path / "run")
    first = (step - 1) // 4 * 4
    assert told[0].first_step == first
    expected = _losses(events)
    assert _losses(told) == {n: expected[n] for n in range(first + 1, STEPS + 1)}
    assert metrics_of(tmp_path / "run") == metrics_of(folder)
    _equal(again.params, result.params)


@pytest.mark.parametrize("kind", [Evaluated, Saved])
def test_run_that_crashed_around_a_save_goes_on_bit_for_bit(whole, tmp_path, kind):
    with pytest.raises(Crash):
        train(CONFIG, CORPUS, out=tmp_path / "run", on_event=_crash_at(8, kind))
    again, told = _run(out=tmp_path / "run")
    assert told[0].first_step == (4 if kind is Evaluated else 8)
    assert metrics_of(tmp_path / "run") == metrics_of(whole[2])
    _equal(again.params, whole[0].params)


@pytest.mark.parametrize(
    ("changes", "corpus"),
    [
        ({"loader": "grain"}, CORPUS),
        ({"packing": "documents", "loader": "grain"}, DOCUMENTS),
        ({"tokenizer": "bpe", "vocab_size": 265}, DOCUMENTS),
    ],
    ids=["grain", "documents by grain", "bpe"],
)
def test_run_goes_on_bit_for_bit_whatever_it_reads(tmp_path, changes, corpus):
    config = _data(**changes)
    _, events = _run(config, corpus, out=tmp_path / "whole")
    with pytest.raises(Crash):
        train(config, corpus, out=tmp_path / "run", on_event=_crash_at(6))
    _, told = _run(config, corpus, out=tmp_path / "run")
    assert told[0].first_step == 4
    assert _losses(told).items() <= _losses(events).items()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_grain_makes_the_same_batches_ahead_of_time():
    tokenizer = make_tokenizer(CONFIG.data, CORPUS)
    data = make_data(CONFIG.data, CORPUS, tokenizer, 0)
    for first in (0, 5, 12):
        by_grain = batches_from(_data(loader="grain").data, data.train, first, 12)
        plain = batches_from(CONFIG.data, data.train, first, 12)
        for one, other in zip(by_grain, plain, strict=True):
            _equal(one, other)


def test_finished_run_only_returns_what_it_came_to(whole):
    result, _, folder = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "lock"}
    again, told = _run(out=folder)
    assert [type(event) for event in told] == [Started, Stopped]
    assert told[0].first_step == STEPS
    assert told[1] == Stopped(STEPS, "finished")
    _equal(again.params, result.params)
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "lock"}
    assert {p for p in before if before[p] != after[p]} <= {folder / "metrics.jsonl"}


def test_run_that_shall_not_go_on_is_refused(whole):
    with pytest.raises(ValueError, match="holds a run already, and resume is False"):
        train(CONFIG, CORPUS, out=whole[2], resume=False)


def test_newest_checkpoint_and_the_best_one_are_kept(tmp_path):
    _, events = _run(RISING, out=tmp_path / "run")
    best = min(_of(Evaluated, events), key=lambda e: e.validation_loss).step
    assert RunFolder(tmp_path / "run").checkpoints.steps() == sorted({best, STEPS})
    assert best != STEPS


def test_data_that_is_too_little_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="tokens to validate on must be at least"):
        train(CONFIG, Corpus(("to be or not to be",)), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


# --- What goes wrong ------------------------------------------------------------------


def test_steps_that_are_not_finite_stop_the_run(tmp_path):
    config = dataclasses.replace(
        CONFIG, optimizer=RUNAWAY, checkpoint_every=1, eval_every=100, max_skipped=3
    )
    folder, events = RunFolder(tmp_path / "run"), []
    with pytest.raises(FloatingPointError, match="step 5 is the last of 4 ") as caught:
        train(config, CORPUS, out=folder.path, on_event=events.append)
    assert "max_skipped = 3" in str(caught.value)
    assert f"checkpoint is {folder.checkpoints.path(1)}" in str(caught.value)
    assert folder.checkpoints.steps() == [1]
    skipped = [e.metrics.skipped for e in _of(Stepped, events)]
    assert skipped == [False, True, True, True, True]


def test_not_finite_without_a_folder_names_no_checkpoint():
    config = dataclasses.replace(CONFIG, optimizer=RUNAWAY, max_skipped=0)
    with pytest.raises(FloatingPointError, match="there is no checkpoint"):
        train(config, CORPUS)


def test_full_disk_leaves_a_run_that_can_go_on(whole, tmp_path, monkeypatch):
    write, folder = checkpoint_room.write_parts, tmp_path / "run"

    def full_at_the_second(path, tree):
        write(path, tree)
        if (folder / "checkpoints" / "00000004").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_room, "write_parts", full_at_the_second)
        with pytest.raises(OSError, match=r"step 8 .*No space left on device; the"):
            train(CONFIG, CORPUS, out=folder)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["00000004"]
    _, told = _run(out=folder)
    assert told[0].first_step == 4
    assert metrics_of(folder) == metrics_of(whole[2])


def test_folder_is_free_again_whatever_happened(tmp_path):
    with pytest.raises(Crash):
        train(CONFIG, CORPUS, out=tmp_path / "run", on_event=_crash_at(2))
    with RunFolder(tmp_path / "run").locked():
        pass
