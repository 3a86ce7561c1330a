"""Continuations: what is printed, and that it is what the library generates."""

import io
import re
import sys

import jax
import pytest

from haiku_mqa import generate, load_pretrained
from haiku_mqa.cli.generate import _PluginDecoder
from tests.tiny_gguf import write_tiny_gguf

FIGURES = re.compile(
    r"(\d+) prompt tokens? · (\d+) new tokens? · \d+\.\d s to first token"
    r"( · \d+\.\d tokens/s)?"
)


@pytest.fixture
def continued(run, tiny):
    """``continued("text", ...)`` -> the text that was printed, and its figures."""

    def command(*words):
        done = run("generate", "--model", tiny, *words)
        assert done.code == 0, done.err
        text, _, figures = done.out.removesuffix("\n").rpartition("\n")
        matched = FIGURES.fullmatch(figures)
        assert matched, figures
        return text, matched

    return command


def test_text_is_the_prompt_and_what_the_library_generates(continued, tiny):
    text, figures = continued("In the end", "--max-new-tokens", 12)
    loaded = load_pretrained(tiny)
    ids = loaded.tokenizer.encode("In the end")
    result = generate(loaded.model, loaded.params, [ids], max_new_tokens=12)
    assert text == "In the end" + loaded.tokenizer.decode(result.tokens[0])
    assert figures[1] == str(len(ids))
    assert figures[2] == "12"
    assert figures[3]


def test_rate_is_left_out_where_there_are_too_few_tokens_to_tell(continued):
    _, figures = continued("x", "--max-new-tokens", 2)
    assert figures[2] == "2"
    assert figures[3] is None


def test_loading_is_told_on_stderr_alone(run, tiny):
    done = run("generate", "--model", tiny, "--max-new-tokens", 2, "x")
    assert done.err == f"haiku-mqa: loading {tiny}\n"


def test_chat_prints_the_answer_alone(continued, tiny):
    text, figures = continued(
        "--chat", "--system", "Rhyme.", "Hello", "--max-new-tokens", 4
    )
    loaded = load_pretrained(tiny)
    ids = loaded.tokenizer.encode_chat(
        [
            {"role": "system", "content": "Rhyme."},
            {"role": "user", "content": "Hello"},
        ]
    )
    result = generate(loaded.model, loaded.params, [ids], max_new_tokens=4)
    assert text == loaded.tokenizer.decode(result.tokens[0])
    assert figures[1] == str(len(ids))


def test_text_is_the_same_for_the_same_seed_and_another_for_another(continued):
    words = ("x", "--temperature", 2, "--top-k", 200, "--top-p", 0.99)
    words += ("--max-new-tokens", 12)
    [first, again, other] = [continued(*words, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert first == again != other


def test_sampled_text_is_what_the_library_generates(continued, tiny):
    from haiku_mqa import Sampling

    text, _ = continued("x", "--temperature", 2, "--seed", 3, "--max-new-tokens", 8)
    loaded = load_pretrained(tiny)
    result = generate(
        loaded.model,
        loaded.params,
        [loaded.tokenizer.encode("x")],
        max_new_tokens=8,
        sampling=Sampling(temperature=2.0),
        rng=jax.random.key(3),
    )
    assert text == "x" + loaded.tokenizer.decode(result.tokens[0])


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_prompt_of_a_file_is_the_text_without_its_last_newline(
    continued, tmp_path, ending
):
    file = tmp_path / "prompt.txt"
    file.write_bytes(f"one\ntwo{ending}".encode())
    text, figures = continued("--file", file, "--max-new-tokens", 1)
    assert text.startswith("one\ntwo")
    assert figures[1] == "7"


def test_prompt_of_standard_input_is_read(continued, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("né\n".encode())))
    text, figures = continued("-", "--max-new-tokens", 1)
    assert text.startswith("né")
    assert figures[1] == "3"


def test_new_tokens_end_with_the_context_where_none_were_asked_for(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "short.gguf", max_length=20)
    done = run("generate", "--model", file, "x" * 15)
    assert done.code == 0, done.err
    assert "15 prompt tokens · 5 new tokens" in done.out


def test_new_tokens_are_64_where_none_were_asked_for(continued):
    assert continued("x")[1][2] == "64"


def test_weights_can_be_bfloat16(continued):
    assert continued("x", "--dtype", "bfloat16", "--max-new-tokens", 3)[1][2] == "3"


def test_real_model_knows_the_capital_of_france(run, smollm2_file):
    done = run(
        "generate",
        "--model",
        smollm2_file,
        "--max-new-tokens",
        2,
        "The capital of France is",
    )
    assert done.code == 0, done.err
    assert done.out.startswith("The capital of France is Paris.\n")


class _Letters:
    """A tokenizer that promises no more than a plugin's must."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def test_tokenizer_of_a_plugin_is_streamed_without_half_a_character():
    decoder = _PluginDecoder(_Letters())
    shown = [decoder.push(byte) for byte in "a€b".encode()]
    assert shown == ["a", "", "", "€", "b"]
    assert decoder.finish() == ""
    decoder.push(0xE2)
    assert decoder.finish() == "\ufffd"
