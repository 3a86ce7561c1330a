"""The verb ``serve``: its words, and its end by a signal."""

from __future__ import annotations

import signal
import sys

import openai
import pytest

from haiku_mqa.cli import serve
from haiku_mqa.cli._models import load_model
from haiku_mqa.cli.main import build_parser
from tests.server.serving import MESSAGES


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGTERM, ()), (signal.SIGINT, ("--quantize", "int8", "--cache", "int8"))],
    ids=["SIGTERM", "SIGINT in int8"],
)
def test_command_serves_until_a_signal(start, tiny, number, words):
    sizes = ("--slots", 1, "--context", 32)
    process = start("serve", "--model", tiny, "--port", 0, *sizes, *words)
    url = None
    while url is None:
        line = process.stderr.readline()
        assert line, "the server ended"
        if "serving tiny on " in line:
            url = line.partition(" on ")[2].partition(";")[0]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        steps = client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, stream=True
        )
        next(iter(steps))
        process.send_signal(number)
        assert list(steps)[-1].choices[0].finish_reason == "length"
    assert process.wait(timeout=120) == 0
    assert process.stderr.read() == "haiku-mqa: stopped\n"


def test_serve_without_its_libraries_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("serve", "--model", "shakespeare-mqa")
    assert done.code == 1
    assert done.error == (
        "serving needs the extra 'serve': pip install 'haiku-mqa[serve]'"
    )


def test_port_that_is_taken_is_a_failure_before_the_model_is_loaded(run):
    with serve._listening("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--model", "shakespeare-mqa", "--port", port)
    assert done.code == 1
    assert done.err == (f"haiku-mqa: error: 127.0.0.1:{port}: Address already in use\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "smolm2-135"], "did you mean 'smollm2-135m'?"),
        (["--port", "70000"], "from 0 to 65535, got '70000'"),
        (["--slots", "0"], "a whole number >= 1, got '0'"),
        (["--grce", "3"], "did you mean '--grace'?"),
        (["--cache", "int4"], "unknown value 'int4': did you mean 'int8'?"),
    ],
)
def test_wrong_words_are_misuse(run, words, message):
    done = run("serve", "--port", 0, *words)
    assert done.code == 2
    assert message in done.error


def test_cache_is_held_in_int8_where_a_word_says_so(tiny):
    words = ["--model", str(tiny), "--context", "32", "--slots", "1"]
    args = build_parser().parse_args(["serve", *words, "--cache", "int8"])
    loaded = load_model(args.model, dtype=args.dtype)
    cache = serve._service(loaded, args).engine._turns._held.cache
    assert {layer.keys.dtype.name for layer in cache.layers} == {"int8"}


def test_context_longer_than_the_models_is_misuse(run, tiny):
    done = run("serve", "--port", 0, "--model", tiny, "--context", 200)
    assert done.code == 2
    assert "--context must be at most 128" in done.error
