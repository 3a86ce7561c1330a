"""Tokenizers: what is encoded can be read again, and nothing is lost in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.errors import FormatError
from haiku_mqa.text import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from haiku_mqa.training import read_corpus

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler… né Ω 🙂"
EXAMPLES = {
    "characters": CharacterTokenizer(TEXT),
    "bytes": ByteTokenizer(),
    "bpe": BytePairTokenizer.train([TEXT, "to be to be"], vocab_size=270),
}
every_kind = pytest.mark.parametrize("kind", EXAMPLES)
any_text = st.text(st.characters(exclude_categories=["Cs"]))


# --- Round trips ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=any_text)
def test_any_text_is_decoded_to_itself(kind, text):
    tokenizer = EXAMPLES[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(st.sampled_from(TEXT)))
def test_text_of_known_characters_is_decoded_to_itself(text):
    tokenizer = EXAMPLES["characters"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


@every_kind
@given(data=st.data())
def test_any_tokens_are_decoded_to_text(kind, data):
    tokenizer = EXAMPLES[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert tokenizer.decode(np.array(ids, np.int32)) == tokenizer.decode(ids)


@every_kind
def test_ids_are_below_the_size_of_the_vocabulary(kind):
    tokenizer = EXAMPLES[kind]
    assert 0 <= min(tokenizer.encode(TEXT)) <= max(tokenizer.encode(TEXT))
    assert max(tokenizer.encode(TEXT)) < tokenizer.vocab_size


# --- As others have it ----------------------------------------------------------------

LIBRARY = {kind: tokenizer.to_library() for kind, tokenizer in EXAMPLES.items()}
spelled = st.lists(any_text | st.just("<|endoftext|>")).map("".join)


@every_kind
@given(data=st.data())
def test_library_makes_the_same_tokens_and_the_same_text(kind, data):
    known = st.text(st.sampled_from(TEXT))
    text = data.draw(known if kind == "characters" else spelled)
    ids = EXAMPLES[kind].encode(text)
    assert LIBRARY[kind].encode(text).ids == ids
    assert LIBRARY[kind].decode(ids) == text


@every_kind
def test_library_has_as_many_tokens(kind):
    assert LIBRARY[kind].get_vocab_size() == EXAMPLES[kind].vocab_size


def test_library_refuses_an_unknown_character_too():
    with pytest.raises(Exception, match="Missing"):
        LIBRARY["characters"].encode("To be!")


def test_what_ends_a_text_has_a_name_of_its_own_in_the_library():
    name = "<|endoftext|>"
    pairs = [(name[:i], name[i]) for i in range(1, len(name))]
    tokenizer = BytePairTokenizer(pairs)
    assert tokenizer.to_library().id_to_token(*tokenizer.end_tokens) == f"<{name}>"


# --- What is refused ------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("place", [-1, 0])
def test_id_of_no_token_is_refused(kind, place):
    size = EXAMPLES[kind].vocab_size
    bad = place if place < 0 else size
    with pytest.raises(
        ValueError, match=f"token id .* from 0 to {size - 1}, got {bad}"
    ):
        EXAMPLES[kind].decode([0, bad])


@every_kind
def test_token_that_is_no_whole_number_is_refused(kind):
    with pytest.raises(ValueError, match=r"token id must be a whole number"):
        EXAMPLES[kind].decode([1.5])


@every_kind
@pytest.mark.parametrize("text", [b"To be", None, 3])
def test_text_that_is_no_string_is_refused(kind, text):
    with pytest.raises(ValueError, match="text must be a string, got"):
        EXAMPLES[kind].encode(text)


@every_kind
def test_lone_surrogate_is_refused(kind):
    with pytest.raises(ValueError, match=r"lone surrogate, '\\ud800', at character 2"):
        EXAMPLES[kind].encode("To\ud800")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("To be; or", r"';' \(U\+003B\) at character 5"),
        ("Ω🙂☺", r"'☺' \(U\+263A\) at character 2"),
        ("\U0010ffff", r"\(U\+10FFFF\) at character 0"),
    ],
)
def test_unknown_character_is_refused_by_name_and_offset(text, told):
    with pytest.raises(ValueError, match=told):
        EXAMPLES["characters"].encode(text)


def test_characters_of_no_text_are_refused():
    with pytest.raises(ValueError, match="text must have a character"):
        CharacterTokenizer("")


# --- Vocabularies ---------------------------------------------------------------------


def test_characters_are_those_of_the_text_in_order():
    assert CharacterTokenizer("banana").characters == "abn"
    assert CharacterTokenizer(read_corpus().text).vocab_size == 65


def test_only_byte_pairs_have_a_token_that_ends_a_text():
    ends = {kind: tokenizer.end_tokens for kind, tokenizer in EXAMPLES.items()}
    assert ends == {"characters": (), "bytes": (), "bpe": (269,)}


@given(text=any_text)
def test_no_text_is_encoded_to_the_token_that_ends_it(text):
    assert 269 not in EXAMPLES["bpe"].encode(text + "<|endoftext|></s>")


def test_token_that_ends_a_text_says_nothing():
    tokenizer = EXAMPLES["bpe"]
    assert tokenizer.decode([*tokenizer.encode("to be"), 269]) == "to be"


def test_byte_pairs_have_the_size_that_was_asked_for_and_are_fewer_than_bytes():
    documents = read_corpus().documents
    tokenizer = BytePairTokenizer.train(documents, vocab_size=512)
    sample = documents[0][:10_000]
    assert tokenizer.vocab_size == 512
    assert len(tokenizer.encode(sample)) < 0.6 * len(sample)
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_byte_pairs_are_the_same_in_another_process_with_another_number_of_threads():
    program = (
        "from haiku_mqa.text import *; from haiku_mqa.training import *; "
        "print(BytePairTokenizer.train(read_corpus().documents, 400).merges)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
        ).stdout
        for threads in ("1", "4")
    }
    assert len(found) == 1


@pytest.mark.parametrize("size", [0, 256, -1, 300.0, None, True])
def test_byte_pairs_refuse_a_size_below_the_bytes(size):
    with pytest.raises(ValueError, match="vocab_size must be a whole number >= 257"):
        train_tokenizer("bpe", [TEXT], size)


def test_byte_pairs_refuse_a_size_that_the_documents_do_not_allow():
    with pytest.raises(ValueError, match=r"vocab_size must be from 257 to 258, .*500"):
        BytePairTokenizer.train(["ab"], vocab_size=500)


@pytest.mark.parametrize(
    "merges", [[("a", "bc")], [("ab", "c"), ("a", "b")], [("", "a")], [("a", " ")]]
)
def test_byte_pairs_refuse_merges_of_what_is_no_token(merges):
    with pytest.raises(ValueError, match=r"merges\[0\] must join two earlier tokens"):
        BytePairTokenizer(merges)


# --- By name --------------------------------------------------------------------------


@every_kind
def test_tokenizer_is_made_by_the_name_of_its_kind(kind):
    size = 270 if kind == "bpe" else None
    assert train_tokenizer(kind, [TEXT, "to be to be"], size) == EXAMPLES[kind]


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'characters'"):
        train_tokenizer("character", [TEXT])


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_size_is_refused_where_the_kind_has_its_own(kind):
    with pytest.raises(ValueError, match=f"vocab_size must be None for '{kind}'"):
        train_tokenizer(kind, [TEXT], 300)


@pytest.mark.parametrize(("kind", "size"), [("characters", None), ("bpe", 257)])
def test_single_text_in_place_of_documents_is_refused(kind, size):
    with pytest.raises(ValueError, match="must be a sequence of texts"):
        train_tokenizer(kind, TEXT, size)


# --- Files ----------------------------------------------------------------------------


@every_kind
def test_loaded_tokenizer_is_the_one_that_was_saved(kind, tmp_path):
    EXAMPLES[kind].save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded == EXAMPLES[kind]
    assert hash(loaded) == hash(EXAMPLES[kind])
    assert loaded.encode(TEXT) == EXAMPLES[kind].encode(TEXT)
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_tokenizers_differ_where_their_tokens_do():
    others = [CharacterTokenizer("ab"), BytePairTokenizer([])]
    everyone = [*EXAMPLES.values(), *others]
    assert len(set(everyone)) == len(everyone)


def test_saved_file_stays_as_it_was_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        CharacterTokenizer(TEXT).save(path)
    assert load_tokenizer(path) == ByteTokenizer()
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def _saved(**fields):
    return json.dumps({"format": "haiku_mqa tokenizer 1", **fields})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("[]", "format must be"),
        ('{"format": "else", "kind": "bytes"}', "format must be"),
        (_saved(kind="byte"), "did you mean 'bytes'"),
        (_saved(kind="characters"), "fields of 'characters' must be"),
        (_saved(kind="bytes", merges=[]), "fields of 'bytes' must be"),
        (_saved(kind="characters", characters="ba"), "in order, each once"),
        (_saved(kind="characters", characters=3), "text must be a string"),
        (_saved(kind="characters", characters=""), "must have a character"),
        (_saved(kind="bpe", merges=3), "not iterable"),
        (_saved(kind="bpe", merges=[["a"]]), "not enough values"),
        (_saved(kind="bpe", merges=[[1, 2]]), "two earlier tokens"),
        (_saved(kind="bpe", merges=[[[], "a"]]), "unhashable"),
        (_saved(kind=[]), "unhashable"),
    ],
)
def test_damaged_file_is_refused_by_name(tmp_path, text, fault):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=rf"tokenizer\.json is no tokenizer.*{fault}"):
        load_tokenizer(path)


def test_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "tokenizer.json")
