"""What a run says to a person: its plan, a bar, and texts made harmless."""

from __future__ import annotations

import re
import shlex

import pytest

from haiku_mqa import load_pretrained
from haiku_mqa.cli import _training
from haiku_mqa.cli._training import Sampler, Screen, framed, plan
from haiku_mqa.training import Corpus, RunConfig
from haiku_mqa.training.run.events import Evaluated, Started, StepMetrics, Stepped
from tests.cli.tiny_run import HAMLET, TINY


def started(settings="", step=0):
    """What a run says when it begins."""
    config = RunConfig.from_dict(TINY).with_settings(settings.split())
    return Started(config, config.decoder_config(18), 752, 1161, 129, 12, step)


def test_plan_says_in_aligned_lines_what_is_going_to_be_done():
    assert plan(started(), HAMLET, "runs/first").splitlines() == [
        "model      1 layer of width 8, 752 parameters",
        "heads      2 heads that share 1 KV head (multi-query)",
        "corpus     hamlet.txt: 1,161 tokens to train on, 129 held out",
        "tokens     18 characters",
        "steps      12 of 4 x 8 tokens, 0.33 times the corpus",
        "optimizer  adamw, learning rate 0.01, falling to 0.0001",
        "folder     runs/first",
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("model.num_kv_heads=2", "2 heads, each with keys and values of its own (mul"),
        ("model.num_heads=4 model.num_kv_heads=2", "4 heads that share 2 KV heads (gr"),
        ("data.tokenizer=bytes", "tokens     18 bytes"),
        ("data.tokenizer=bpe data.vocab_size=260", "tokens     18 byte pairs"),
        ("optimizer.schedule=constant", "adamw, learning rate 0.01\n"),
    ],
)
def test_plan_names_what_is_not_usual(settings, line):
    assert line in plan(started(settings), HAMLET, "x")


def test_plan_says_where_a_run_goes_on_or_that_it_is_finished():
    told = plan(started(step=5), HAMLET, "x")
    assert told.endswith("\ngoes on    from step 5\n")
    told = plan(started(step=12), HAMLET, "x")
    assert told.endswith("\nfinished   all steps were done before\n")


def test_bar_tells_losses_speed_and_the_time_that_is_left(on_terminal):
    on_terminal()
    screen = Screen("x", HAMLET, is_quiet=False)
    screen(started())
    metrics = StepMetrics(2.5, 1.0, 1e-3, 32, False)
    for step in range(1, 9):
        screen(Stepped(step, metrics, 9876.5))
    told = str(screen._bar)
    assert re.search(r"\| 8/12, 00:00 left, loss 2\.500, 9,876 tokens/s$", told), told
    screen(Evaluated(8, 2.25, is_best=True))
    screen(Stepped(9, metrics, 98765.4))
    assert "loss 2.500, validation 2.250, 99k tokens/s" in str(screen._bar)
    screen.close()


def test_text_that_a_terminal_takes_for_commands_is_made_harmless():
    shown = framed("step 1", "\n\x1b[2J\x07to\tbe\r\n\x9b31m é €\u202e\n")
    _, *lines, _ = shown.splitlines()
    assert lines == ["\ufffd[2J\ufffdto\tbe\ufffd", "\ufffd31m é €\ufffd"]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("\n\n  To be, or not to be\n", "To be, or not"),
        ("--help me\n", "help me"),
        ("\x00\x01\nx\n", "x"),
        ("\n \n", "..."),
        ("a" * 99, "a" * 40),
        ("It's\n", "It's"),
    ],
)
def test_prompt_that_is_offered_is_the_first_words_of_the_corpus(text, prompt):
    assert _training._prompt(Corpus((text,))) == prompt
    command = _training._command("runs/first", Corpus((text,)))
    assert shlex.split(command)[-1] == prompt


def test_folder_that_could_be_a_name_of_the_zoo_is_offered_as_a_path():
    command = _training._command("first", Corpus(("x",)))
    assert command == "haiku-mqa generate --model ./first x"


def test_sampler_writes_the_same_at_the_same_step_and_seed_alone(trained):
    loaded = load_pretrained(trained)

    def text(seed, step):
        sampler = Sampler(seed)
        sampler.observe(Stepped(step, None, 0.0))
        return sampler(loaded.model, loaded.params, loaded.tokenizer, "to be", 70)

    assert text(1, 5) == text(1, 5)
    assert len({text(1, 5), text(1, 6), text(2, 5)}) == 3
    assert len(text(1, 5)) == len("to be") + 70  # of a context of 32
