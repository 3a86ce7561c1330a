"""Continuations: what is printed, and that it is what the library generates."""

import io
import re
import sys

import jax
import numpy as np
import pytest

from haiku_mqa import DecoderConfig, Sampling, build, generate, load_pretrained
from haiku_mqa.streaming import CorpusDecoder, PluginDecoder
from haiku_mqa.text import BytePairTokenizer, ByteTokenizer
from tests.folders import write_model_folder
from tests.models import drawn_params
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


# --- Models of one corpus -------------------------------------------------------------


@pytest.fixture
def written(run, trained):
    """``written("text", ...)`` -> what a tiny model of a run makes of it."""

    def command(*words):
        done = run("generate", "--model", trained, *words)
        assert done.code == 0, done.err
        text, _, figures = done.out.removesuffix("\n").rpartition("\n")
        return text, FIGURES.fullmatch(figures)

    return command


def test_model_of_a_run_is_sampled_unless_asked_not_to_be(written, trained):
    loaded = load_pretrained(trained)
    prompt = loaded.tokenizer.encode("to be")
    for words, temperature in ((), 0.8), (("--temperature", 0), 0.0):
        text, _ = written("to be", "--seed", 3, "--max-new-tokens", 9, *words)
        result = generate(
            loaded.model,
            loaded.params,
            [prompt],
            max_new_tokens=9,
            sampling=Sampling(temperature=temperature),
            rng=jax.random.key(3),
        )
        assert text == "to be" + loaded.tokenizer.decode(result.tokens[0])


def test_model_of_a_run_writes_on_where_its_context_of_32_is_full(written):
    text, figures = written("to be", "--max-new-tokens", 100)
    assert len(text) == 105
    assert figures[2] == "100"
    assert written("to be", "--max-new-tokens", 100)[0] == text


def test_model_of_a_run_writes_500_tokens_where_none_were_asked_for(written):
    assert written("to be")[1][2] == "500"


def test_where_the_context_is_full_its_second_half_is_read_again(written, trained):
    loaded = load_pretrained(trained)
    text, _ = written("to be", "--temperature", 0, "--max-new-tokens", 40)
    first, rest = text[:32], text[32:]
    prompt = loaded.tokenizer.encode(first[16:])
    result = generate(loaded.model, loaded.params, [prompt], max_new_tokens=len(rest))
    assert rest == loaded.tokenizer.decode(result.tokens[0])


def test_prompt_longer_than_the_context_of_a_run_is_read_from_its_end(written):
    words = ("--temperature", 0, "--max-new-tokens", 8)
    long = "to be, or not to be: that is the question. Whether"
    text, figures = written(long, *words)
    assert text == long + written(long[-16:], *words)[0][16:]
    assert figures[1] == str(len(long))


def test_end_token_ends_the_text_of_a_run(run, tmp_path):
    tokenizer = BytePairTokenizer([])
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        num_layers=1,
        num_heads=1,
        d_model=4,
        d_ff=4,
        tie_embeddings=False,
        max_length=8,
    )
    params = drawn_params(build(config))
    # Whatever was read, the largest logit is the end token's or its opposite's.
    unembed = np.zeros(params["decoder_lm/unembed"]["w"].shape, np.float32)
    params["decoder_lm/unembed"] = {"w": unembed}
    (end,) = tokenizer.end_tokens
    for sign in (1, -1):
        unembed[:, end] = sign * np.arange(1, 5)
        folder = tmp_path / f"model{sign}"
        write_model_folder(folder, config, params=params, tokenizer=tokenizer)
        done = run("generate", "--model", folder, "--temperature", 0, "to be")
        if "0 new tokens" in done.out:
            assert done.out.startswith("to be\n5 prompt tokens · 0 new tokens · ")
            return
    pytest.fail("no text ended")


def test_packed_model_is_the_default_and_needs_no_network(run, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("something was fetched")

    monkeypatch.setattr("haiku_mqa.zoo.entries.fetch", fail)
    done = run("generate", "ROMEO:")
    assert done.code == 0, done.err
    assert done.out.startswith("ROMEO:")
    assert "6 prompt tokens · 500 new tokens · " in done.out
    assert done.err == "haiku-mqa: loading shakespeare-mqa\n"


def test_chat_is_with_the_language_model_where_none_is_named(run, monkeypatch, tiny):
    asked = []

    def load(source, *, dtype, quantize):
        asked.append(source)
        return load_pretrained(tiny, dtype=dtype, quantize=quantize)

    monkeypatch.setattr("haiku_mqa.cli.generate.load_model", load)
    assert run("generate", "--chat", "--max-new-tokens", 1, "x").code == 0
    assert asked == ["smollm2-135m"]


# --- Weights --------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "decoder",
    [PluginDecoder(_Letters()), CorpusDecoder(ByteTokenizer())],
    ids=["plugin", "corpus"],
)
def test_text_is_streamed_without_half_a_character(decoder):
    shown = [decoder.push(byte) for byte in "a€b".encode()]
    assert shown == ["a", "", "", "€", "b"]
    assert decoder.finish() == ""
    decoder.push(0xE2)
    assert decoder.finish() == "\ufffd"
