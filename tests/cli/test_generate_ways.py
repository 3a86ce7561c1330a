"""Samples, beams, guesses, stops and prefixes: what is printed is the library's."""

import re

import jax
import numpy as np
import pytest

from haiku_mqa import Sampling, generate, load_pretrained
from haiku_mqa.cli.main import build_parser
from haiku_mqa.generation import beam_search, stream
from tests.folders import write_model_folder

NEW = 8
PROMPT = "to be"
GREEDY = ("--temperature", 0)


@pytest.fixture(scope="module")
def loaded(trained):
    """The tiny model of a run, as the library has it: a token is a character."""
    return load_pretrained(trained)


@pytest.fixture
def written(run, trained):
    """``written("text", ...)`` -> all that was printed, and its last line apart."""

    def command(*words):
        options = ("--model", trained, "--max-new-tokens", NEW, "--seed", 3)
        done = run("generate", *options, *words)
        assert done.code == 0, done.err
        text, _, figures = done.out.removesuffix("\n").rpartition("\n")
        return text, figures

    return command


def _generated(loaded, text=PROMPT, **options):
    prompt = loaded.tokenizer.encode(text)
    options = {"max_new_tokens": NEW, "tokenizer": loaded.tokenizer, **options}
    hot = {"sampling": Sampling(temperature=0.8), "rng": jax.random.key(3)}
    return generate(loaded.model, loaded.params, [prompt], **hot, **options)


# --- Where a text ends ----------------------------------------------------------------


def test_text_ends_before_the_first_stop_wherever_its_tokens_begin(written, loaded):
    [free] = _generated(loaded).texts
    stop = free[2:5]
    assert free.index(stop) == 2
    text, figures = written("--stop", "no such text", "--stop", stop, PROMPT)
    assert text == PROMPT + free[:2]
    assert " · 5 new tokens · " in figures


def test_newline_of_a_stop_can_be_spelled():
    words = ["generate", "x", "--stop", r"\n\nA", "--stop", "b"]
    assert build_parser().parse_args(words).stop == ["\n\nA", "b"]


# --- Several texts --------------------------------------------------------------------


def test_samples_are_those_of_the_library_each_under_its_own_line(written, loaded):
    result = _generated(loaded, num_samples=3)
    text, figures = written("--samples", 3, PROMPT)
    assert text == "".join(
        f"--- sample {n} of 3 ---\n{PROMPT}{sample}\n\n"
        for n, sample in enumerate(result.texts, start=1)
    ).removesuffix("\n")
    assert " · 3 samples · 24 new tokens · " in figures


def test_beams_are_those_of_the_library_best_first(written, loaded):
    found = beam_search(
        loaded.model,
        loaded.params,
        [loaded.tokenizer.encode(PROMPT)],
        num_beams=3,
        max_new_tokens=NEW,
        length_penalty=0.5,
    )
    text, figures = written("--beams", 3, "--length-penalty", 0.5, PROMPT)
    shown = [
        f"--- {n} of 3 · score {score:.3f} ---\n{PROMPT}"
        f"{loaded.tokenizer.decode(tokens)}\n\n"
        for n, (tokens, score) in enumerate(
            zip(found.tokens[0], found.scores[0], strict=True), start=1
        )
    ]
    assert text == "".join(shown).removesuffix("\n")
    assert " · 3 beams of up to 8 new tokens · " in figures


# --- How likely ----------------------------------------------------------------------


@pytest.mark.parametrize("several", [(), ("--samples", 2)], ids=["one", "samples"])
def test_log_probabilities_are_listed_for_each_token(written, loaded, several):
    samples = several[1] if several else 1
    result = _generated(loaded, logprobs=True, num_samples=samples)
    text, figures = written("--logprobs", *several, PROMPT)
    rows = re.findall(r"^('.*'|\".*\") +(-?[\d.]+) +([\d.]+)%$", text, re.MULTILINE)
    wanted = [n for row in result.logprobs for n in row]
    assert len(rows) == NEW * samples
    np.testing.assert_allclose([float(row[1]) for row in rows], wanted, atol=1e-3)
    shares = 100 * np.exp(wanted)
    np.testing.assert_allclose([float(row[2]) for row in rows], shares, atol=0.1)
    means = re.findall(r"mean log-probability (-[\d.]+)", text + figures)
    assert len(means) == samples
    assert float(means[0]) == pytest.approx(np.mean(result.logprobs[0]), abs=1e-3)


# --- Guesses -------------------------------------------------------------------------


def test_guessed_text_is_the_plain_one_and_the_guesses_are_counted(written, trained):
    text, figures = written("--draft", trained, *GREEDY, PROMPT)
    assert text == written(*GREEDY, PROMPT)[0]
    # The first call reads the prompt; the others guess four, and choose one more.
    assert figures.endswith(" · 3 calls of the model · 5 of 5 guesses stood (100%)")
    text, figures = written("--prompt-lookup", PROMPT)
    assert text == written(PROMPT)[0]
    assert re.search(r" calls of the model · \d+ of \d+ guesses stood \(", figures)


def test_draft_over_other_tokens_is_misuse_before_anything_is_written(
    run, trained, tiny
):
    done = run("generate", "--model", trained, "--draft", tiny, PROMPT)
    assert done.code == 2
    assert done.error == "the draft's vocab_size must be the model's, 65, got 260"
    assert done.out == ""


# --- The cache ------------------------------------------------------------------------


def test_cache_can_be_int8(written, loaded, monkeypatch):
    asked = []

    def watch(*args, **options):
        asked.append(options["cache_dtype"])
        return stream(*args, **options)

    monkeypatch.setattr("haiku_mqa.generation.stream", watch)
    result = _generated(loaded, cache_dtype="int8")
    assert written("--cache", "int8", PROMPT)[0] == PROMPT + result.texts[0]
    assert asked == ["int8"]


def test_text_with_rings_is_the_same(run, tmp_path):
    folder = write_model_folder(tmp_path / "model", sliding_window=4)
    words = ("generate", "--model", folder, "--max-new-tokens", NEW, PROMPT)
    plain, ring = run(*words), run(*words, "--ring-cache")
    assert ring.code == 0, ring.err
    assert ring.out.splitlines()[:-1] == plain.out.splitlines()[:-1]


# --- Prefixes -------------------------------------------------------------------------


@pytest.fixture
def kept(written, tmp_path):
    """The file of a prefix in int8, and what was printed as it was written."""
    file = tmp_path / "prefix"
    return file, *written("--cache", "int8", "--save-prefix", file, PROMPT)


def test_text_goes_on_from_a_prefix_as_from_the_whole(written, kept):
    file, first, figures = kept
    assert first == written("--cache", "int8", PROMPT)[0]
    assert figures.startswith("5 prompt tokens · 8 new tokens · ")
    text, figures = written("--prefix", file)
    assert PROMPT + text == first
    assert figures.startswith("prefix of 5 tokens · 8 new tokens · ")
    text, figures = written("--prefix", file, ", or")
    assert PROMPT + text == written("--cache", "int8", PROMPT + ", or")[0]
    assert figures.startswith("4 prompt tokens behind a prefix of 5 tokens · ")


def test_prefix_can_be_made_longer(run, written, kept, trained):
    file, *_ = kept
    text, _ = written("--prefix", file, "--save-prefix", file, ", or")
    words = ("generate", "--model", trained, "--max-new-tokens", 1)
    done = run(*words, "--prefix", file, "--save-prefix", file)
    assert f"haiku-mqa: {file} holds a prefix of 9 tokens\n" in done.err
    assert ", or" + written("--prefix", file)[0] == text


def test_run_goes_on_beyond_its_context_from_a_prefix_too(run, trained, kept):
    file, *_ = kept
    words = ("generate", "--model", trained, "--max-new-tokens", 40, "--prefix", file)
    text = run(*words, *GREEDY).out.rpartition("\nprefix of 5 tokens · ")[0]
    assert len(text) == 40
    again = run("generate", "--model", trained, *GREEDY, (PROMPT + text)[16:32]).out
    assert again[16:].startswith(text[-13:])


def test_prefix_of_quantized_weights_is_theirs_alone(run, trained, tmp_path):
    file = tmp_path / "prefix"
    words = ("generate", "--model", trained, "--max-new-tokens", 1)
    small = (*words, "--quantize", "int8")
    assert run(*small, "--save-prefix", file, PROMPT).code == 0
    assert run(*small, "--prefix", file).code == 0
    done = run(*words, "--prefix", file)
    assert done.code == 2
    assert f"{file} is the cache of other parameters" in done.error


def test_prefix_of_another_model_is_refused_and_the_difference_named(
    kept, run, tmp_path
):
    file, *_ = kept
    other = write_model_folder(tmp_path / "other", vocab_size=65, max_length=64)
    done = run("generate", "--model", other, "--prefix", file)
    assert done.code == 2
    assert done.error == (
        f"{file} is the cache of another model: max_length = 32, not 64"
    )
