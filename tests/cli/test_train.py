"""A run as a person sees it: what it shows meanwhile, and what came of it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys

import jax
import numpy as np
import pytest

from haiku_mqa import load_pretrained
from haiku_mqa.cli import train as train_verb
from haiku_mqa.cli._training import Sampler, framed
from haiku_mqa.cli.main import build_parser
from haiku_mqa.training import Corpus, load_run_config, recipe_names
from haiku_mqa.training.run.events import Stepped
from tests.cli.tiny_run import TEXT, TINY

STEP = re.compile(
    r"step +\d+  loss \d\.\d{3}  validation \d\.\d{3}  (best so far|\s{11})  \S+ tok"
)


@pytest.fixture
def words(tmp_path):
    """The words of a tiny run; ``train(...)`` adds to them."""
    config, corpus = tmp_path / "tiny.json", tmp_path / "hamlet.txt"
    config.write_text(json.dumps(TINY))
    corpus.write_text(TEXT)
    return ["train", "--config", str(config), "--data", str(corpus)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "first"


@pytest.fixture
def train(run, words, folder):
    """``train(...)`` -> what a tiny run that went well printed."""

    def command(*more):
        done = run(*words, "--out", folder, *more)
        assert done.code == 0, done.err
        return done

    return command


def steps_of(text):
    return [line for line in text.splitlines() if STEP.match(line)]


def untimed(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{**line, "seconds": None} for line in lines]


# --- What is shown --------------------------------------------------------------------


def test_there_is_a_plain_line_for_each_evaluation_and_no_bar(train):
    done = train()
    assert len(steps_of(done.out)) == 3
    assert done.err == ""


def test_samples_stand_between_lines(train, folder):
    done = train()
    assert done.out.count("── step 6 ──") == done.out.count("── step 12 ──") == 1
    samples = (folder / "samples.txt").read_text()
    text = samples.partition("===\n")[2].partition("\n\n=== step 12")[0]
    assert framed("step 6", text) in done.out


def test_terminal_has_a_bar_instead_of_lines(train, on_terminal):
    on_terminal()
    done = train()
    assert not steps_of(done.out)
    assert "── step 6 ──" in done.out
    assert "0/12, compiling the first step" in done.err
    assert "step 4" not in done.err


def test_quiet_prints_the_result_alone(train, folder, on_terminal):
    on_terminal()
    done = train("--quiet")
    assert done.err == ""
    names = [line[:20].strip() for line in done.out.splitlines()]
    assert names == ["best validation loss", "folder", "speak with it"]
    assert (folder / "samples.txt").read_text().count("=== step") == 2


def test_step_that_was_left_out_is_told(run, words, folder):
    settings = ("optimizer.schedule=constant", "optimizer.learning_rate=1e38")
    done = run(*words, "--out", folder, "--set", *settings, "max_skipped=3")
    assert done.code == 1
    assert done.out.count("is left out: its loss or gradient is not finite") == 4
    assert "max_skipped = 3" in done.error


# --- What came of it ------------------------------------------------------------------


def test_result_names_the_best_loss_and_the_command_to_speak_with_it(
    train, run, folder
):
    rows = train().out.rpartition("\n\n")[2].splitlines()
    losses = [line for line in untimed(folder) if "is_best" in line]
    best = min(losses, key=lambda line: line["validation_loss"])
    assert rows[0].startswith(f"best validation loss  {best['validation_loss']:.4f} ")
    assert rows[0].endswith(f"at step {best['step']}")
    assert rows[1] == f"folder                {folder}"
    name, _, command = rows[2].partition("  ")
    assert name == "speak with it"
    program, *command = shlex.split(command)
    assert program == "haiku-mqa"
    done = run(*command, "--max-new-tokens", 3)
    assert done.code == 0, done.err
    assert done.out.startswith("To be, or not")


def test_loss_is_told_by_the_character_too_where_a_token_is_another_thing(train, words):
    with open(words[-1], "w") as file:
        file.write("é€" * 600)
    out = train("--set", "data.tokenizer=bytes").out
    per_token, per_character = re.findall(r"([\d.]+) nats per", out)
    assert float(per_character) == pytest.approx(2.5 * float(per_token), abs=1e-3)


# --- Its config -----------------------------------------------------------------------


def test_options_and_settings_are_in_the_config_of_the_run(train, folder, words):
    train("--steps", 5, "--seed", 7, "--set", "eval_every=2", "--set", "log_every=3")
    config = load_run_config(folder)
    assert config.optimizer.total_steps == 5
    assert config.seed == 7
    assert (config.eval_every, config.log_every) == (2, 3)
    assert config.data.source == words[-1]


@pytest.mark.parametrize(
    ("more", "warm_up"),
    [
        ([], 50),
        (["--steps", "2000"], 50),
        (["--steps", "100"], 10),
        (["--steps", "5"], 0),
        (["--steps", "5", "--set", "optimizer.warmup_steps=2"], 2),
    ],
)
def test_few_steps_cut_the_warm_up_to_a_tenth_of_them(more, warm_up):
    args = build_parser().parse_args(["train", "--out", "x", *more])
    assert train_verb._config(args, None).optimizer.warmup_steps == warm_up


def test_config_of_another_run_gives_the_same_losses(train, run, words, folder):
    train()
    second = folder.with_name("second")
    assert run("train", "--config", folder, "--out", second).code == 0
    assert untimed(second) == untimed(folder)
    assert (second / "samples.txt").read_text() == (folder / "samples.txt").read_text()


@pytest.mark.parametrize(
    ("text", "tokenizer", "prompt"),
    [("abc", "characters", "a"), ("abc", "bytes", "\n"), ("a\n", "characters", "\n")],
)
def test_samples_begin_with_what_the_tokenizer_knows(text, tokenizer, prompt):
    config = load_run_config().with_settings([f"data.tokenizer={tokenizer}"])
    config = train_verb._with_known_prompt(config, Corpus((text,)), None)
    assert config.sample_prompt == prompt


def test_context_of_one_token_has_no_samples(train, folder):
    train("--set", "data.seq_len=1")
    assert not (folder / "samples.txt").exists()


@pytest.mark.parametrize("name", recipe_names())
def test_help_tells_of_every_recipe(run, name):
    assert f"\n  {name} " in run("train", "--help").out


# --- Mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "required: --out"),
        (["--out", ""], "--out must name a folder, and is empty"),
        (["--out", "x", "--steps", "0"], "--steps: must be a whole number >= 1, got"),
        (["--out", "x", "--seed", "-1"], "from 0 to 4294967295, got '-1'"),
        (["--out", "x", "--set"], "--set: expected at least one argument"),
        (["--out", "x", "--set", "seed"], "--set takes FIELD=VALUE, such as"),
        (
            ["--out", "x", "--set", "sed=3"],
            "'sed': did you mean 'seed'?",
        ),
        (["--out", "x", "--set", "eval_every=0"], "eval_every must be a whole number"),
        (["--out", "x", "--set", "model.num_kv_heads=3"], "allowed: 1, 2, 4"),
        (["--out", "x", "--config", "defalt"], "unknown recipe 'defalt': did you mean"),
        (["--out", "x", "--config", "no.json"], "'no.json': there is no such file"),
        (["--out", "x", "--data", "no-such"], "'no-such': there is no such file or f"),
        (["--out", "x", "--resume"], "--resume needs a run, and x holds none"),
        (["--out", "x", "--tensorbord"], "did you mean '--tensorboard'?"),
        (["--out", "x", "y"], "one word too many: 'y'"),
        (["--out", "x", "--set", "sample_prompt=é"], "tinyshakespeare has, and it has"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_words_that_are_no_run_are_misuse(run, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    done = run("train", *more)
    assert done.code == 2
    assert message in done.error
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_corpus_that_is_too_small_is_misuse_and_leaves_no_folder(run, words, folder):
    with open(words[-1], "w") as file:
        file.write("to be")
    done = run(*words, "--out", folder)
    assert done.code == 2
    assert not folder.exists()


def test_folder_of_something_else_is_misuse(run, words, folder):
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    done = run(*words, "--out", folder)
    assert done.code == 2
    assert "must be empty or hold a run, and it has thesis.tex" in done.error


def test_tensorboard_without_its_extra_is_a_failure_that_names_it(
    run, words, folder, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = run(*words, "--out", folder, "--tensorboard")
    assert done.code == 1
    assert done.error == (
        "--tensorboard needs the extra 'tensorboard': pip install "
        "'haiku-mqa[tensorboard]'"
    )
    assert not folder.exists()


def test_tensorboard_is_written_if_it_is_asked_for(train, folder):
    train("--tensorboard")
    [events] = (folder / "tensorboard").iterdir()
    assert events.stat().st_size > 100


# --- Stopping and going on ------------------------------------------------------------


@pytest.fixture
def signalled(monkeypatch):
    """``signalled(number, step)`` has a signal come at a step, once."""

    def at(number, step):
        observe = Sampler.observe

        def and_signal(self, event):
            observe(self, event)
            if isinstance(event, Stepped) and event.step == step:
                monkeypatch.setattr(Sampler, "observe", observe)
                signal.raise_signal(number)

        # A test run in the background ignores interrupts.
        monkeypatch.setattr(Sampler, "observe", and_signal)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return at


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize("how", ["same words", "--resume"])
def test_run_that_a_signal_stopped_says_so_and_goes_on_as_if_it_had_not(
    run, words, folder, signalled, number, code, word, how
):
    whole = folder.with_name("whole")
    assert run(*words, "--out", whole).code == 0
    signalled(number, 5)
    stopped = run(*words, "--out", folder)
    assert stopped.code == code
    [line] = stopped.err.splitlines()
    matched = re.fullmatch(
        rf"haiku-mqa: {word} at step ([56]) and saved in {re.escape(str(folder))}; the "
        "same command, or --resume, goes on from there",
        line,
    )
    assert matched, line
    assert "speak with it" not in stopped.out
    more = ["--resume"] if how == "--resume" else words[1:]
    again = run("train", "--out", folder, *more)
    assert again.code == 0, again.err
    assert f"goes on    from step {matched[1]}\n" in again.out
    assert untimed(folder) == untimed(whole)
    assert (folder / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    params = [load_pretrained(path).params for path in (folder, whole)]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_finished_run_says_so_and_what_came_of_it(train, folder):
    first = train().out.rpartition("\n\n")[2]
    before = (folder / "metrics.jsonl").read_bytes()
    for more in ((), ("--resume",)):
        done = train(*more)
        assert "\nfinished   all steps were done before\n" in done.out
        assert done.out.rpartition("\n\n")[2] == first
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_another_run_in_the_same_folder_is_misuse(train, run, words, folder):
    train()
    for more in ([*words[1:], "--seed", 1], ["--resume", "--set", "seed=1"]):
        done = run("train", "--out", folder, *more)
        assert done.code == 2
        assert "holds another run: seed: 0 in the folder, 1 asked for" in done.error


def test_interrupt_of_a_process_has_the_exit_code_that_shells_know(
    start, words, folder
):
    process = start(*words, "--out", folder, "--steps", 200_000)
    assert any(line.startswith("step ") for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted at step" in errors
    assert len(list((folder / "checkpoints").iterdir())) in (1, 2)
