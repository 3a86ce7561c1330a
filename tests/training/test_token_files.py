"""Files of tokens: what is read is what was written, or the file and the byte."""

from __future__ import annotations

import itertools
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.errors import FormatError
from haiku_mqa.text import BytePairTokenizer, ByteTokenizer, CharacterTokenizer
from haiku_mqa.training import Corpus, encode_corpus, open_tokens, write_tokens

HEADER = 128  # bytes
TOKENS = [104, 101, 108, 108, 111]
MEGABYTE = 2**20


class Large(ByteTokenizer):
    """Knows as many tokens as it is told."""

    def __init__(self, size: int):
        self._size = size

    @property
    def vocab_size(self) -> int:
        return self._size


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.npy"


@pytest.fixture
def written(path):
    write_tokens(path, TOKENS, ByteTokenizer())
    return path


# --- What was written is read ---------------------------------------------------------

FORMS = [(1, "<u2"), (256, "<u2"), (2**16, "<u2"), (2**16 + 1, "<u4"), (2**31, "<u4")]


@pytest.mark.parametrize(("size", "form"), FORMS)
@given(data=st.data())
def test_tokens_that_are_opened_are_those_that_were_written(
    tmp_path_factory, size, form, data
):
    tokens = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50))
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    assert write_tokens(path, iter(tokens), Large(size)) == len(tokens)
    opened = open_tokens(path, vocab_size=size)
    assert opened.tolist() == tokens
    assert opened.dtype == form
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), tokens)
    assert path.stat().st_size == HEADER + len(tokens) * opened.itemsize


@pytest.mark.parametrize(
    "tokenizer",
    [BytePairTokenizer([]), ByteTokenizer(), CharacterTokenizer("abcé")],
    ids=lambda tokenizer: tokenizer.kind,
)
@given(texts=st.lists(st.text("abcé", min_size=1), min_size=1, max_size=4))
def test_corpus_is_written_as_it_is_encoded(tmp_path_factory, tokenizer, texts):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    corpus = Corpus(tuple(texts))
    expected = encode_corpus(corpus, tokenizer)
    assert write_tokens(path, corpus, tokenizer) == len(expected)
    np.testing.assert_array_equal(open_tokens(path), expected)


@pytest.mark.parametrize(
    "tokens",
    [TOKENS, tuple(TOKENS), np.array(TOKENS), np.array(TOKENS, np.uint8), iter(TOKENS)],
    ids=["list", "tuple", "int64", "uint8", "iterator"],
)
def test_tokens_may_come_from_anything_that_yields_them(path, tokens):
    write_tokens(path, tokens, ByteTokenizer())
    assert open_tokens(path).tolist() == TOKENS


def test_pieces_of_a_long_row_follow_one_another(path, monkeypatch):
    monkeypatch.setattr("haiku_mqa.training.token_files._PIECE", 7)
    for tokens in (range(100), np.arange(100)):
        write_tokens(path, tokens, ByteTokenizer())
        assert open_tokens(path, vocab_size=100).tolist() == list(range(100))
    with pytest.raises(FormatError, match=f"byte {HEADER + 2 * 90}: token 90 is not"):
        open_tokens(path, vocab_size=90)
    with pytest.raises(ValueError, match=r"got 256 at place 100"):
        write_tokens(path, [*range(100), 256], ByteTokenizer())


def test_opened_tokens_cannot_be_written_to(written):
    with pytest.raises(ValueError, match="read-only"):
        open_tokens(written)[0] = 1


@pytest.mark.parametrize("form", ["<u2", "<u4", "<i4"])
def test_file_that_numpy_saved_is_opened(path, form):
    np.save(path, np.array(TOKENS, form))
    assert open_tokens(path, vocab_size=256).tolist() == TOKENS
    np.save(path, np.array([], form))
    assert open_tokens(path).shape == (0,)


def test_neither_writing_nor_opening_holds_all_tokens(path):
    count = 16 * MEGABYTE
    tracemalloc.start()
    try:
        write_tokens(path, _all_alike(count), Large(2**16))
        opened = open_tokens(path, vocab_size=2**16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert opened.nbytes == 2 * count
    assert peak < opened.nbytes / 3


def _all_alike(count):
    return np.broadcast_to(np.uint16(7), count)  # takes no memory


# --- A file is whole, or is not there -------------------------------------------------


@pytest.mark.parametrize("tokens", [[], [1, 256], [1, -1], [0.5], [[1], [2]], 3, "ab"])
def test_tokens_that_are_refused_leave_the_file_as_it_was(written, tokens):
    with pytest.raises(ValueError, match="tokens must be"):
        write_tokens(written, tokens, ByteTokenizer())
    assert open_tokens(written).tolist() == TOKENS
    assert os.listdir(written.parent) == [written.name]


def test_corpus_that_cannot_be_said_leaves_nothing(path):
    with pytest.raises(ValueError, match="'z'"):
        write_tokens(path, Corpus(("ab", "z")), CharacterTokenizer("ab"))
    assert os.listdir(path.parent) == []


def test_tokens_that_fail_to_come_leave_nothing(path):
    def tokens():
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="is gone"):
        write_tokens(path, tokens(), ByteTokenizer())
    assert os.listdir(path.parent) == []


def test_file_and_its_folder_are_synced_before_it_has_its_name(path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda _: synced.append(os.listdir(path.parent)[0])
    )
    write_tokens(path, TOKENS, ByteTokenizer())
    assert len(synced) == 2
    assert synced[0].endswith(".part")
    assert synced[1] == path.name


def test_folder_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_tokens(tmp_path / "none" / "tokens.npy", TOKENS, ByteTokenizer())
    with pytest.raises(FileNotFoundError):
        open_tokens(tmp_path / "tokens.npy")


# --- Damage ---------------------------------------------------------------------------


@given(size=st.integers(0, HEADER + 2 * len(TOKENS) - 1))
def test_file_that_is_cut_off_is_refused_at_its_last_byte(tmp_path_factory, size):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    write_tokens(path, TOKENS, ByteTokenizer())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError, match=rf"tokens\.npy: byte {size}: "):
        open_tokens(path)


def test_file_that_goes_on_is_refused_where_it_should_end(written):
    written.write_bytes(written.read_bytes() + b"\0\0\0")
    with pytest.raises(
        FormatError, match=rf"byte {HEADER + 10}: the file goes on here"
    ):
        open_tokens(written)


@given(at=st.integers(0, HEADER - 1), change=st.integers(1, 255))
def test_header_with_any_byte_changed_is_refused(tmp_path_factory, at, change):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    write_tokens(path, TOKENS, ByteTokenizer())
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= change
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=r"tokens\.npy: byte \d+: "):
        open_tokens(path)


HEADERS = {
    "other bytes": (b"not a file of numbers", "byte 0: this is no .npy file"),
    "another version": (b"\x93NUMPY\x03\x00" + b"\0" * 200, "byte 0: this is no"),
    "an endless header": (
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 2**17,
        "byte 8: a header",
    ),
}


@pytest.mark.parametrize("why", HEADERS)
def test_file_of_another_format_is_refused(path, why):
    content, told = HEADERS[why]
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"tokens\.npy: {told}"):
        open_tokens(path)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 3), np.uint16), "not that of an array of one axis"),
        (np.uint16(3), "not that of an array of one axis"),
        (np.zeros(3), "'<f8', and must be one of <u2, <u4, <i4"),
        (np.zeros(3, np.int64), "'<i8', and must be"),
        (np.zeros(3, ">u2"), "'>u2', and must be"),
        (np.array([{}]), r"'\|O', and must be"),
    ],
    ids=["two axes", "no axis", "floats", "int64", "big-endian", "objects"],
)
def test_array_that_holds_no_row_of_tokens_is_refused(path, array, told):
    np.save(path, array, allow_pickle=True)
    with pytest.raises(FormatError, match=f"byte 10: .*{told}"):
        open_tokens(path)


@pytest.mark.parametrize("count", [0, 2**40, 10**18])
def test_count_that_the_file_cannot_hold_is_refused(written, count):
    data = written.read_bytes().replace(b"(5,)", f"({count},)".encode())
    assert len(data[HEADER:]) >= 10
    header = data.split(b"\n")[0].rstrip().ljust(HEADER - 1) + b"\n"
    written.write_bytes(header + data[-10:])
    with pytest.raises(FormatError, match=f"{count} tokens of uint16 make it"):
        open_tokens(written)


@pytest.mark.parametrize("token", [256, 65535])
def test_token_out_of_the_vocabulary_is_told_with_its_byte(path, token):
    tokens = list(itertools.chain(TOKENS, [token], TOKENS))
    write_tokens(path, tokens, Large(2**16))
    assert open_tokens(path).tolist() == tokens
    with pytest.raises(FormatError, match=rf"byte {HEADER + 10}: token {token} is not"):
        open_tokens(path, vocab_size=256)


def test_negative_token_of_another_program_is_told_with_its_byte(path):
    np.save(path, np.array([3, -1], np.int32))
    with pytest.raises(FormatError, match=f"byte {HEADER + 4}: token -1 is not"):
        open_tokens(path, vocab_size=256)
