"""Vocabularies of every kind are read as the libraries read them that made them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained.tokenizer import StreamDecoder, tokenizer_from_gguf
from haiku_mqa.training.corpus import read_corpus

LINES = read_corpus().documents[0][:60_000].splitlines()
TEXTS = [
    "The capital of France is Paris, they'll say; it's 1234567 miles.",
    "  two  spaces and\ttab\n\n\nlines  ",
    "def f(x):\r\n    return x ** 2  # 3.14 + $5 <= ~6`\n",
    "naïve café, Straße 日本語 汉字 مرحبا ١٢٣ 🙂👩\u200d👩\u200d👧",
    "DON'T We'Ve  ...  ---",
    " ",
    "",
]
WORDS = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "the", "thou", "'ll", "É", "日", "12", "345", "!?"]
    )
).map("".join)
KINDS = {"unknown": 2, "control": 3, "user_defined": 4, "unused": 5, "byte": 6}


# --- Pieces of sentences ----------------------------------------------------------


def trained_pieces(**options):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata_of_pieces(theirs, **changes):
    """Returns what those write into a file who convert such vocabularies."""
    ids = range(theirs.get_piece_size())
    tests = {
        "unknown": theirs.is_unknown,
        "control": theirs.is_control,
        "unused": theirs.is_unused,
        "byte": theirs.is_byte,
    }
    kinds = [next((KINDS[k] for k, test in tests.items() if test(i)), 1) for i in ids]
    values = {
        "model": "llama",
        "tokens": [theirs.id_to_piece(i) for i in ids],
        "scores": np.float32([theirs.get_score(i) for i in ids]),
        "token_type": np.int32(kinds),
        "bos_token_id": theirs.bos_id(),
        "eos_token_id": theirs.eos_id(),
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


@pytest.fixture(scope="module", params=[True, False], ids=["space first", "none"])
def pieces(request):
    theirs = trained_pieces(add_dummy_prefix=request.param)
    metadata = metadata_of_pieces(theirs, add_space_prefix=request.param)
    return theirs, tokenizer_from_gguf(metadata)


@pytest.mark.parity
@pytest.mark.parametrize("words", TEXTS)
def test_pieces_of_sentences_are_those_of_sentencepiece(pieces, words):
    theirs, ours = pieces
    ids = theirs.encode(words)
    assert ours.encode(words, add_special_tokens=False) == ids
    assert ours.encode(words) == [theirs.bos_id(), *ids]
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parity
@given(words=WORDS)
def test_any_words_are_the_pieces_that_sentencepiece_makes_of_them(pieces, words):
    theirs, ours = pieces
    ids = ours.encode(words, add_special_tokens=False)
    assert ids == theirs.encode(words)
    assert ours.decode(ids) == words
    decoder = StreamDecoder(ours)
    texts = [decoder.push(token) for token in ids]
    assert "".join([*texts, decoder.finish()]) == words


def small_pieces(**changes):
    """Returns a vocabulary of a few pieces, with ``tokenizer.ggml.`` keys changed."""
    values = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "<0x0A>", "  "],
        "scores": np.float32([0, 0, 0, -3, -4, -5, -1, -2, 0, -1000]),
        "token_type": np.int32([2, 3, 3, 1, 1, 1, 1, 1, 6, 4]),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


def test_the_piece_of_the_highest_score_comes_first():
    assert tokenizer_from_gguf(small_pieces()).encode("abab") == [1, 7, 6]
    scores = np.float32([0, 0, 0, -3, -4, -5, -9, -2, 0, -1000])
    assert tokenizer_from_gguf(small_pieces(scores=scores)).encode("ab") == [1, 7]


def test_a_text_gets_a_space_in_front_unless_the_file_says_no():
    with_space = tokenizer_from_gguf(small_pieces())
    without = tokenizer_from_gguf(small_pieces(add_space_prefix=False))
    assert with_space.encode("ab") == [1, 7]
    assert without.encode("ab") == [1, 6]
    assert with_space.decode([7, 6]) == "abab"
    assert without.decode([7, 6]) == " abab"


def test_spaces_that_a_user_defined_are_found_before_pieces():
    tokenizer = tokenizer_from_gguf(small_pieces(add_space_prefix=False))
    assert tokenizer.encode("a  b") == [1, 4, 9, 5]
    assert tokenizer.decode([4, 9, 5]) == "a  b"


def test_a_byte_is_a_byte_and_its_spelling_is_text():
    tokenizer = tokenizer_from_gguf(small_pieces(add_space_prefix=False))
    assert tokenizer.encode("a\nb") == [1, 4, 8, 5]
    with pytest.raises(ValueError, match="text has '<', for which the vocabulary has"):
        tokenizer.encode("<0x0A>")


def test_others_read_the_same_pieces():
    tokenizer = tokenizer_from_gguf(small_pieces())
    library = tokenizer.to_library()
    assert library.encode("ab ab").ids == tokenizer.encode("ab ab") == [1, 7, 7]
    assert library.decode([1, 7, 7]) == tokenizer.decode([1, 7, 7]) == "ab ab"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "scores' is missing"),
        ({"scores": [1.0]}, "scores must be an array of numbers"),
        ({"scores": np.float32([1])}, "scores has 1 entries, but there are 10 tokens"),
        ({"scores": np.float32([np.nan] * 10)}, "scores must be numbers, got nan"),
        ({"token_type": np.int32([6] * 10)}, r"tokens\[0\] must be a byte such as"),
        ({"add_space_prefix": 1}, "add_space_prefix must be a boolean, got 1"),
        (
            {"tokens": ["a" * 600, *"bcdefghij"], "token_type": np.ones(10, int)},
            r"tokens\[0\] is longer than 512",
        ),
    ],
)
def test_pieces_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(FormatError, match=message):
        tokenizer_from_gguf(small_pieces(**changes))


# --- Byte pairs -------------------------------------------------------------------


def trained_pairs():
    """Returns tokens and merges of bytes in which spaces, digits and marks mix."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    numbers = [f"{i} {i * i} ({i})" for i in range(400)]
    bpe.train_from_iterator([*LINES, *numbers], trainer)
    ids = bpe.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return tokens, [" ".join(merge) for merge in merges]


@pytest.fixture(scope="module")
def pairs():
    return trained_pairs()


def metadata_of_pairs(pairs, pre):
    tokens, merges = pairs
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "merges": merges,
        "token_type": np.ones(len(tokens), np.int32),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.mark.parity
@pytest.mark.parametrize("words", TEXTS)
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_pairs_are_those_of_transformers(pairs, pre, words):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
    )

    tokens, merges = pairs
    theirs, _ = convert_gguf_tokenizer(
        "llama",
        {
            "tokenizer_type": "gpt2",
            "pre_tokenizer_type": pre,
            "tokens": tokens,
            "merges": merges,
            "token_type": [1] * len(tokens),
        },
    )
    ours = tokenizer_from_gguf(metadata_of_pairs(pairs, pre))
    ids = theirs.encode(words, add_special_tokens=False).ids
    assert ours.encode(words) == ids
    assert ours.decode(ids) == words


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        ("gpt-2", ["ab", " 12345", "!?", " c"]),
        ("smollm", ["ab", " ", "1", "2", "3", "4", "5", "!?", " c"]),
        ("llama-bpe", ["ab", " ", "123", "45", "!?", " c"]),
        ("qwen2", ["ab", " ", "1", "2", "3", "4", "5", "!?", " c"]),
        ("falcon", ["ab", " ", "123", "45", "!?", " c"]),
    ],
)
def test_text_is_cut_as_each_kind_was_trained(pre, cut):
    letters = [*"abc12345!?", "Ġ"]
    whole = [piece.replace(" ", "Ġ") for piece in ["ab", " 12345", "!?", " c"]]
    merges = ["a b", "Ġ 1", "Ġ1 2", "Ġ12 3", "Ġ123 4", "Ġ1234 5", "! ?", "Ġ c"]
    merges += ["1 2", "12 3", "4 5", "123 45"]
    made = ["Ġ1", "Ġ12", "Ġ123", "Ġ1234", "12", "123", "45", "12345"]
    tokens = [*letters, *whole, *made]
    tokenizer = tokenizer_from_gguf(metadata_of_pairs((tokens, merges), pre))
    ids = tokenizer.encode("ab 12345!? c")
    assert [tokenizer.decode([token]) for token in ids] == cut


def test_a_letter_and_its_accent_are_one_character_to_qwen(pairs):
    qwen = tokenizer_from_gguf(metadata_of_pairs(pairs, "qwen2"))
    other = tokenizer_from_gguf(metadata_of_pairs(pairs, "llama-bpe"))
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")
    assert other.encode("e\u0301") != other.encode("\u00e9")


def test_words_of_llama_3_are_found_though_no_merge_leads_to_them():
    vocabulary = [*"abc", "ab", "abc"], ["a b"]
    llama, other = (
        tokenizer_from_gguf(metadata_of_pairs(vocabulary, pre))
        for pre in ("llama-bpe", "gpt-2")
    )
    assert llama.encode("abc") == [4]
    assert other.encode("abc") == [3, 2]


def test_llama_3_begins_a_text_unless_the_file_says_no():
    metadata = metadata_of_pairs(([*"ab", "ab", "<s>"], ["a b"]), "llama-bpe")
    metadata["tokenizer.ggml.bos_token_id"] = 3
    assert tokenizer_from_gguf(metadata).encode("ab") == [3, 2]
    metadata["tokenizer.ggml.add_bos_token"] = False
    assert tokenizer_from_gguf(metadata).encode("ab") == [2]
