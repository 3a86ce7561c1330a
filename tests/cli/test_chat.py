"""Talks: that answers are those of the library, and that nothing is read twice."""

import io
import json
import os
import pty
import select
import signal
import sys
import time

import jax
import pytest

from haiku_mqa import Sampling, generate, load_pretrained
from haiku_mqa.generation import Conversation
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture
def talk(run, tiny, monkeypatch):
    """``talk(["line", ...], ...)`` -> what a talk of these lines left behind."""

    def command(lines, *words, model=tiny):
        data = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return run("chat", "--model", model, "--max-new-tokens", 5, *words)

    return command


def _answers(loaded, questions, *, system=None, new_tokens=5, **options):
    """What ``generate`` answers, reading the whole talk anew each time."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        rng = jax.random.key(3)
        result = generate(
            loaded.model,
            loaded.params,
            [loaded.tokenizer.encode_chat(messages)],
            max_new_tokens=new_tokens,
            rng=jax.random.fold_in(rng, turn) if turn else rng,
            **options,
        )
        said = loaded.tokenizer.decode(result.tokens[0])
        messages.append({"role": "assistant", "content": said})
        yield said


def test_answers_are_what_the_library_generates_from_the_whole_talk(talk, tiny):
    done = talk(["Hello", "And you?"])
    assert done.code == 0, done.err
    assert done.out == "".join(
        f"{said}\n" for said in _answers(load_pretrained(tiny), ["Hello", "And you?"])
    )


def test_system_and_sampling_reach_every_answer(talk, tiny):
    words = ("--system", "Rhyme.", "--temperature", 2, "--top-k", 200, "--seed", 3)
    done = talk(["Hello", "And?"], *words)
    sampling = Sampling(temperature=2.0, top_k=200)
    said = _answers(
        load_pretrained(tiny), ["Hello", "And?"], system="Rhyme.", sampling=sampling
    )
    assert done.out == "".join(f"{answer}\n" for answer in said)


def test_penalties_count_the_whole_talk(talk, tiny):
    done = talk(["Hello", "And?"], "--repetition-penalty", 3, "--presence-penalty", 1)
    assert done.code == 0, done.err
    fined = Sampling(temperature=0.0, repetition_penalty=3.0, presence_penalty=1.0)
    said = list(_answers(load_pretrained(tiny), ["Hello", "And?"], sampling=fined))
    assert done.out == "".join(f"{answer}\n" for answer in said)
    assert said != list(_answers(load_pretrained(tiny), ["Hello", "And?"]))


def test_what_was_read_is_not_read_again(talk, monkeypatch):
    read = []
    ask = Conversation._read

    def watch(self, tokens, *rest):
        known = self.tokens
        shared = next(
            (i for i, (a, b) in enumerate(zip(known, tokens, strict=False)) if a != b),
            len(known),
        )
        read.append((len(tokens), shared))
        return ask(self, tokens, *rest)

    monkeypatch.setattr(Conversation, "_read", watch)
    assert talk(["Hello", "And you?"]).code == 0
    (first, none), (second, known) = read
    assert none == 0
    assert first <= known < second


def test_reset_forgets_and_is_told(talk, tiny):
    done = talk(["Hello", "/reset", "Hello"])
    [said] = _answers(load_pretrained(tiny), ["Hello"])
    assert done.out == f"{said}\n" * 2
    assert "haiku-mqa: the talk is forgotten\n" in done.err


def test_talk_is_saved_as_messages_that_the_tokenizer_takes(talk, tiny, tmp_path):
    file = tmp_path / "talk.json"
    done = talk(["Hello", f"/save {file}"], "--system", "Rhyme.")
    assert f"3 messages written to {file}" in done.err
    messages = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert f"{messages[2]['content']}\n" == done.out
    assert load_pretrained(tiny).tokenizer.encode_chat(messages)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "unknown command '/rest': did you mean '/reset'?"),
        ("/save", "/save needs the name of a file"),
        ("/save /no/such/folder/talk.json", "No such file or directory"),
    ],
)
def test_command_that_fails_is_a_line_and_the_talk_goes_on(talk, line, message):
    done = talk([line, "Hello"])
    assert done.code == 0
    assert message in done.error
    assert done.out


def test_help_lists_the_commands_and_exit_leaves(talk):
    done = talk(["/help", "/exit", "Hello"])
    assert done.code == 0
    for command in ("/reset", "/save", "/help", "/exit"):
        assert command in done.out
    assert len(done.out.splitlines()) == 6


def test_line_that_begins_with_two_slashes_is_said_with_one(talk, tiny):
    [said] = _answers(load_pretrained(tiny), ["/etc"])
    assert talk(["//etc"]).out == f"{said}\n"


def test_empty_lines_are_passed_over(talk):
    assert talk(["", "  "]).out == ""


def test_full_context_is_a_line_that_offers_reset(talk, tmp_path):
    file = write_tiny_gguf(tmp_path / "short.gguf", max_length=48)
    done = talk(["x" * 60, "Hello", "Hello"], "--max-new-tokens", 100, model=file)
    assert done.code == 0
    told = [line for line in done.err.splitlines() if "is full" in line]
    assert told == [
        "haiku-mqa: the context is full: /reset begins anew",
        "haiku-mqa: the context of 48 tokens is full: /reset begins anew",
    ]
    assert "this is 78 tokens long, and the context of 48 holds no answer" in done.err
    assert done.out.count("\n") == 1  # one answer, and the talk is as long as it was


def test_answer_that_is_cut_is_told(talk):
    assert "the answer was cut at 5 tokens" in talk(["Hello"]).err


def test_model_without_a_template_is_misuse(talk, trained):
    done = talk(["Hello"], model=trained)
    assert done.code == 2
    assert "has no chat template; 'haiku-mqa generate' takes it" in done.error


def test_line_that_is_not_utf8_is_misuse(run, tiny, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    done = run("chat", "--model", tiny)
    assert done.code == 2
    assert done.error == "standard input must be UTF-8, got the byte 0xe9"


# --- On a terminal ------------------------------------------------------------------


class _Terminal:
    """Both ends of a talk: what is typed, and what is seen."""

    def __init__(self, start, model):
        self._screen, inside = pty.openpty()
        self.process = start(
            "chat",
            "--model",
            model,
            "--max-new-tokens",
            50_000,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.seen = ""

    def type(self, keys):
        os.write(self._screen, keys.encode())

    def wait(self, is_enough, seconds=60):
        end = time.monotonic() + seconds
        while not is_enough(self.seen):
            assert self._reads(end - time.monotonic()), self.seen

    def interrupt_prompt(self):
        """Ctrl-C while a line is awaited, and again where nothing comes of it.

        Python's ``input`` misses a signal between its prompt and its wait for keys.
        """
        for _ in range(6):
            self.process.send_signal(signal.SIGINT)
            if self._reads(10):
                return
        raise AssertionError("nothing came of six interrupts")

    def _reads(self, seconds):
        ready, _, _ = select.select([self._screen], [], [], max(seconds, 0))
        if ready:
            self.seen += os.read(self._screen, 4096).decode(errors="replace")
        return bool(ready)

    def wait_for(self, text):
        """Waits until a text is seen, and looks behind it from then on."""
        self.wait(lambda seen: text in seen)
        self.seen = self.seen.partition(text)[2]

    def close(self):
        os.close(self._screen)


@pytest.fixture
def terminal(start, tmp_path):
    """A talk on a terminal, with a model that never ends an answer."""
    file = write_tiny_gguf(tmp_path / "long.gguf", max_length=60_000)
    terminal = _Terminal(start, file)
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    terminal.wait_for("Ctrl-D leaves")
    terminal.wait_for("> ")
    terminal.type("Hello\n")
    terminal.wait_for("Hello")  # its echo
    terminal.wait(lambda seen: len(seen) > 40)  # of an answer that takes minutes
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("\n> ")
    file = tmp_path / "talk.json"
    terminal.type(f"/save {file}\n")
    terminal.wait_for("2 messages written")
    assert json.loads(file.read_text(encoding="utf-8"))[1]["content"]
    terminal.wait_for("> ")
    terminal.interrupt_prompt()  # with no answer to stop
    terminal.wait_for("haiku-mqa: Ctrl-D leaves")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
