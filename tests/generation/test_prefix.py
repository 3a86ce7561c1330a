"""A prefix is read once; what follows it is what follows the whole text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa.errors import FormatError
from haiku_mqa.generation import Prefix, generate, read_prefix
from haiku_mqa.generation import prefix as prefix_room
from tests.cache_forms import FORMS, reader
from tests.models import drawn_params, example, example_params, example_tokens

SAME = 1e-5
NAME = "grouped"
START, REST = list(range(9)), [3, 1, 4, 1, 5]
OWNER = (example(NAME), example_params(NAME))


@pytest.fixture(scope="module")
def prefix():
    return read_prefix(*OWNER, START)


def _greedy(name, cache, logits, count):
    """Returns the likeliest tokens that follow, a row at a time."""
    chosen = []
    for _ in range(count):
        token = logits.argmax(axis=-1)[:, None]
        chosen.append(np.asarray(token))
        logits, cache = reader(name)(token, cache)
        logits = logits[:, 0]
    return np.concatenate(chosen, axis=1).tolist()


@pytest.mark.parametrize("form", [form for form in FORMS if "int8" not in form])
def test_generation_from_a_prefix_is_that_of_the_whole_prompt(form):
    name, options = FORMS[form]
    if "dtype" in options:
        name, options = "bfloat16", {}
    model, params = example(name), example_params(name)
    ids = example_tokens(name, 1, 14)[0].tolist()
    wanted = generate(model, params, [ids] * 3, max_new_tokens=6).tokens
    prefix = read_prefix(model, params, ids[:9], **options)
    prefix = prefix.extended(model, params, ids[9:])
    logits = jnp.broadcast_to(prefix.logits, (3, *prefix.logits.shape))
    got = _greedy(name, prefix.rows(3, max_length=24), logits, 6)
    assert got == wanted


def test_prefix_holds_what_was_read_and_what_comes_next(prefix):
    assert prefix.tokens == tuple(START)
    assert prefix.cache.lengths.tolist() == [len(START)]
    full = OWNER[0].apply(OWNER[1], None, jnp.asarray([START])).logits[0, -1]
    np.testing.assert_allclose(prefix.logits, full, atol=SAME)


def test_prefix_extended_is_the_longer_text_read_at_once(prefix):
    longer = prefix.extended(*OWNER, REST)
    whole = read_prefix(*OWNER, START + REST)
    assert longer.tokens == whole.tokens == (*START, *REST)
    np.testing.assert_allclose(longer.logits, whole.logits, atol=SAME)


def test_prefix_is_not_changed_by_what_follows_it(prefix):
    before = jax.tree.map(np.array, prefix.cache)
    first = prefix.extended(*OWNER, REST)
    again = prefix.extended(*OWNER, REST)
    np.testing.assert_array_equal(first.logits, again.logits)
    jax.tree.map(np.testing.assert_array_equal, prefix.cache, before)
    donated = jax.jit(lambda cache: cache, donate_argnums=0)
    donated(prefix.rows(1, prefix.cache.capacity))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(prefix.cache))


def test_prefix_grows_beyond_the_room_that_it_began_with(prefix):
    longer = prefix.extended(*OWNER, REST * 4)
    assert longer.cache.capacity >= 29 > prefix.cache.capacity
    assert not bool(longer.cache.overflowed.any())
    whole = read_prefix(*OWNER, START + REST * 4)
    np.testing.assert_allclose(longer.logits, whole.logits, atol=SAME)


def test_long_prefix_is_read_in_chunks(prefix, monkeypatch):
    monkeypatch.setattr(prefix_room, "_CHUNK", 4)
    chunked = read_prefix(*OWNER, START)
    np.testing.assert_allclose(chunked.logits, prefix.logits, atol=SAME)


def test_short_prefix_with_rings_keeps_rings_when_it_grows():
    model, params = example("windowed"), example_params("windowed")
    prefix = read_prefix(model, params, [1], ring=True)
    longer = prefix.extended(model, params, [2] * 40)
    assert {layer.keys.shape[2] for layer in longer.cache.layers} == {3}


@pytest.mark.parametrize("form", FORMS)
def test_prefix_comes_back_from_its_file(form, tmp_path):
    name, options = FORMS[form]
    model, params = example(name), example_params(name)
    prefix = read_prefix(model, params, START, **options)
    prefix.save(tmp_path / "prefix", model, params)
    loaded = Prefix.load(tmp_path / "prefix", model, params)
    assert loaded.tokens == prefix.tokens
    np.testing.assert_array_equal(loaded.logits, prefix.logits)
    jax.tree.map(np.testing.assert_array_equal, loaded.cache, prefix.cache)
    assert list(tmp_path.iterdir()) == [tmp_path / "prefix"]


def test_prefix_of_another_models_parameters_is_refused(prefix, tmp_path):
    prefix.save(tmp_path / "prefix", *OWNER)
    with pytest.raises(ValueError, match="is the cache of other parameters"):
        Prefix.load(tmp_path / "prefix", OWNER[0], drawn_params(OWNER[0], seed=1))


def test_cache_without_tokens_is_no_prefix(prefix, tmp_path):
    prefix_room.save_cache(tmp_path / "past", prefix.cache, *OWNER)
    with pytest.raises(FormatError, match="is no prefix"):
        Prefix.load(tmp_path / "past", *OWNER)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens must hold at least one token id, got none"),
        ("text", "tokens must be a list of token ids, got 'text'"),
        (7, "tokens must be a list of token ids, got 7"),
        ([1, 29], r"tokens\[1\] must be a whole number from 0 to 28, got 29"),
        ([1.5], r"tokens\[0\] must be a whole number from 0 to 28, got 1.5"),
        ([1] * 60, "within max_length = 64, got 60 after 9"),
    ],
)
def test_tokens_that_cannot_follow_are_refused(tokens, message, prefix):
    with pytest.raises(ValueError, match=message):
        prefix.extended(*OWNER, tokens)


def test_rows_without_room_for_the_prefix_are_refused(prefix):
    with pytest.raises(ValueError, match="at least 9, what a row holds"):
        prefix.rows(2, max_length=8)
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1"):
        prefix.rows(0, max_length=32)


def test_nan_in_the_logits_is_told():
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, example_params(NAME))
    with pytest.raises(FloatingPointError, match="the logits after the prefix are NaN"):
        read_prefix(OWNER[0], params, START)
