"""What comes before prompts, and the forms of cache that they are read into."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa import DecoderConfig, Sampling, build, generate, stream
from haiku_mqa.generation import (
    Draft,
    Prefix,
    PromptLookup,
    beam_search,
    loop,
    read_prefix,
    speculate,
)
from tests.models import drawn_params, example, example_params

SIZES = {"vocab_size": 29, "num_heads": 2, "d_model": 16, "d_ff": 24, "max_length": 64}
MODEL = build(DecoderConfig(num_layers=2, sliding_window=(3, None), **SIZES))
PARAMS = drawn_params(MODEL)
OWNER = (MODEL, PARAMS)
START = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
PROMPTS = [[1, 2, 3], [], [7], [8, 2, 8, 1, 8]]
JOINED = [START + prompt for prompt in PROMPTS]
NEW = 6
LOGPROB = 1e-4  # of float32 logits, read at once or one after another
HOT = {"sampling": Sampling(temperature=1.3), "rng": jax.random.key(5)}
FINED = Sampling(temperature=0.0, repetition_penalty=1.4, presence_penalty=0.2)


def _generate(prompts, **options):
    return generate(*OWNER, prompts, max_new_tokens=NEW, **options)


@pytest.fixture(scope="module")
def prefix():
    return read_prefix(*OWNER, START)


# --- Forms of the cache ---------------------------------------------------------------


@settings(max_examples=10)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, 28), min_size=1, max_size=10), min_size=4, max_size=4
    )
)
def test_tokens_are_the_same_with_rings(prompts):
    plain = _generate(prompts, **HOT).tokens
    assert _generate(prompts, ring_cache=True, **HOT).tokens == plain


@jax.jit
def _read(params, tokens, cache, mask=None):
    out = MODEL.apply(params, None, tokens, cache=cache, mask=mask)
    return out.logits, out.cache


def _by_hand(prompts, new=NEW, **form):
    """Returns greedy tokens by a loop of calls with a cache of a form."""
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]
    cache = MODEL.init_cache(len(prompts), 32, **form)
    logits, cache = _read(PARAMS, tokens, cache, real)
    logits = logits[np.arange(len(prompts)), lengths - 1]
    chosen = []
    for _ in range(new):
        token = logits.argmax(axis=-1)[:, None]
        chosen.append(np.asarray(token))
        logits, cache = _read(PARAMS, token, cache)
        logits = logits[:, 0]
    return np.concatenate(chosen, axis=1).tolist()


def test_tokens_with_an_int8_cache_are_those_of_calls_with_one():
    tokens = _generate(JOINED, cache_dtype="int8", ring_cache=True).tokens
    assert tokens == _by_hand(JOINED, dtype="int8", ring=True)


@pytest.mark.parametrize(
    "form", [{}, {"ring": True}, {"dtype": "int8"}, {"dtype": jnp.int8, "ring": True}]
)
def test_cache_is_of_the_form_that_was_asked_for(form, monkeypatch):
    made = []

    def watch(*arguments):
        made.append(arguments[4].nbytes)
        raise KeyboardInterrupt  # nothing need be computed

    monkeypatch.setattr(loop, "prefill", watch)
    asked = {"cache_dtype": form.get("dtype"), "ring_cache": "ring" in form}
    with pytest.raises(KeyboardInterrupt):
        _generate(JOINED, **asked)
    assert made == [MODEL.init_cache(4, 24, **form).nbytes]


# --- Prefixes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, HOT | {"num_samples": 2}, {"sampling": FINED}],
    ids=["greedy", "samples", "penalties"],
)
def test_prompts_go_on_from_a_prefix_as_from_the_joined_text(prefix, options):
    whole = _generate(JOINED, logprobs=True, **options)
    result = _generate(PROMPTS, prefix=prefix, logprobs=True, **options)
    assert result.tokens == whole.tokens
    assert result.finish_reasons == whole.finish_reasons
    for mine, theirs in zip(result.logprobs, whole.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=LOGPROB)


def test_no_token_of_a_prefix_is_read_again(prefix, monkeypatch):
    read = []

    def watch(model, params, tokens, lengths, *rest):
        read.append(lengths.tolist())
        return prefill(model, params, tokens, lengths, *rest)

    prefill = loop.prefill
    monkeypatch.setattr(loop, "prefill", watch)
    _generate(PROMPTS, prefix=prefix)
    assert read == [[3, 0, 1, 5]]


def test_prefix_is_the_same_after_it_was_continued(prefix):
    before = jax.tree.map(np.array, prefix.cache)
    first = _generate(PROMPTS, prefix=prefix).tokens
    assert _generate(PROMPTS, prefix=prefix).tokens == first
    jax.tree.map(np.testing.assert_array_equal, prefix.cache, before)


@pytest.mark.parametrize(
    ("model", "form"),
    [
        (MODEL, {"dtype": "int8", "ring": True}),
        (example("windowed"), {"ring": True}),  # in all layers
    ],
    ids=["int8 ring", "endless"],
)
def test_prefix_of_any_form_is_continued_from_its_file(model, form, tmp_path):
    owner = model, drawn_params(model)
    prefix = read_prefix(*owner, START, **form)
    prefix.save(tmp_path / "prefix", *owner)
    loaded = Prefix.load(tmp_path / "prefix", *owner)
    forms = {"cache_dtype": form.get("dtype"), "ring_cache": "ring" in form}
    whole = generate(*owner, JOINED, max_new_tokens=NEW, **forms).tokens
    for each in prefix, loaded:
        result = generate(*owner, PROMPTS, max_new_tokens=NEW, prefix=each)
        assert result.tokens == whole


def test_stream_goes_on_from_a_prefix(prefix):
    whole = _generate(JOINED).tokens
    steps = stream(*OWNER, PROMPTS, max_new_tokens=3, prefix=prefix)
    for place, step in enumerate(steps):
        assert step.tokens == [[row[place]] for row in whole]


def test_beams_go_on_from_a_prefix_and_in_any_form_of_cache(prefix):
    options = {"num_beams": 3, "max_new_tokens": 4}
    whole = beam_search(*OWNER, JOINED, **options)
    for prompts, form in (PROMPTS, {"prefix": prefix}), (JOINED, {"ring_cache": True}):
        found = beam_search(*OWNER, prompts, **options, **form)
        assert found.tokens == whole.tokens
        for mine, theirs in zip(found.scores, whole.scores, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=LOGPROB)


@pytest.mark.parametrize(
    "proposer", [PromptLookup(), Draft(MODEL, PARAMS, 2)], ids=["lookup", "draft"]
)
def test_speculation_goes_on_from_a_prefix(prefix, proposer):
    options = {"proposer": proposer, "max_new_tokens": NEW}
    whole = speculate(*OWNER, JOINED, **options)
    result = speculate(*OWNER, PROMPTS, prefix=prefix, **options)
    assert result == whole
    assert result.tokens == _generate(JOINED).tokens


def test_speculation_with_an_int8_cache_is_generation_with_one():
    result = speculate(
        *OWNER, JOINED, proposer=PromptLookup(), max_new_tokens=NEW, cache_dtype="int8"
    )
    assert result.tokens == _generate(JOINED, cache_dtype="int8").tokens


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_dtype": "int9"}, "unknown cache_dtype 'int9': did you mean 'int8'?"),
        ({"cache_dtype": "int32"}, "unknown cache_dtype 'int32'"),
        ({"ring_cache": 1}, "ring_cache must be True or False, got 1"),
        ({"prefix": START}, "prefix must be a Prefix, as read_prefix returns it"),
        ({}, r"prompts\[1\] must hold at least one token id, and is empty"),
    ],
)
def test_what_cannot_come_before_prompts_is_refused_at_the_call(options, message):
    with pytest.raises(ValueError, match=message):
        stream(*OWNER, PROMPTS, max_new_tokens=NEW, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_dtype": "int8"}, "cache_dtype must be left out with prefix"),
        ({"ring_cache": True}, "ring_cache must be left out with prefix"),
        (
            {"max_new_tokens": 60},
            r"prompts\[0\] has 3 tokens behind a prefix of 11 and max_new_tokens is 60",
        ),
    ],
)
def test_what_cannot_go_on_from_a_prefix_is_refused_at_the_call(
    prefix, options, message
):
    options = {"max_new_tokens": NEW, "prefix": prefix, **options}
    with pytest.raises(ValueError, match=message):
        stream(*OWNER, PROMPTS, **options)


def test_prefix_of_another_model_is_refused_and_the_difference_is_named(prefix):
    other = example("windowed"), example_params("windowed")
    message = "prefix must be what this model read, and another did: .*num_kv_heads"
    with pytest.raises(ValueError, match=message):
        stream(*other, PROMPTS, max_new_tokens=NEW, prefix=prefix)
    with pytest.raises(ValueError, match=message):
        prefix.extended(*other, [1])


def test_prefix_with_rings_is_refused_where_guesses_must_be_forgotten():
    prefix = read_prefix(*OWNER, START, ring=True)
    with pytest.raises(ValueError, match="prefix must be read with ring=False"):
        speculate(
            *OWNER, PROMPTS, proposer=PromptLookup(), max_new_tokens=NEW, prefix=prefix
        )
