"""A corpus: whole, as it was written, and never half understood."""

from __future__ import annotations

import hashlib
import json
import lzma
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.errors import FormatError
from haiku_mqa.training import Corpus, corpus, read_corpus, split

TINYSHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
documents = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1
)


def _write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- The one in the package -----------------------------------------------------------


def test_embedded_corpus_is_tinyshakespeare():
    embedded = read_corpus()
    assert embedded.name == "tinyshakespeare"
    assert embedded.sha256 == TINYSHAKESPEARE
    assert embedded.num_characters == embedded.num_bytes == 1_115_394
    assert embedded.text.startswith("First Citizen:\nBefore we proceed any further")
    assert len(set(embedded.text)) == 65


@pytest.mark.parametrize(
    "data",
    [b"", b"not xz", lzma.compress(b"another text"), lzma.compress(b"cut")[:-9]],
    ids=["empty", "foreign", "another", "cut"],
)
def test_embedded_corpus_is_refused_when_damaged(tmp_path, monkeypatch, data):
    monkeypatch.setattr(corpus, "_EMBEDDED", _write(tmp_path / "tiny.txt.xz", data))
    with pytest.raises(FormatError, match=r"tiny\.txt\.xz is damaged"):
        read_corpus()


# --- A file ---------------------------------------------------------------------------


def test_text_file_is_one_document_named_after_it(tmp_path):
    read = read_corpus(_write(tmp_path / "play.txt", "To be"))
    assert (read.documents, read.name) == (("To be",), "play.txt")


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_file_is_read_as_it_is_line_endings_too(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    assert read_corpus(_write(path, "\ufeff" + text)).text == text


def test_byte_order_mark_is_no_text(tmp_path):
    plain = read_corpus(_write(tmp_path / "plain.txt", "To be"))
    marked = read_corpus(_write(tmp_path / "marked.txt", b"\xef\xbb\xbfTo be"))
    assert marked.documents == plain.documents
    assert marked.sha256 == plain.sha256


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"To be\xff", 5),
        (b"\xef\xbb\xbfTo\x80", 5),
        (b"na\xc3\xafve na\xefve", 9),
        (b"cut \xe2\x82", 4),
        (b"\xff\xfeT\x00o\x00", 0),
    ],
    ids=["byte", "after a mark", "latin-1", "cut", "utf-16"],
)
@pytest.mark.parametrize("name", ["bad.txt", "bad.jsonl"])
def test_text_that_is_not_utf8_is_refused_with_file_and_offset(
    tmp_path, name, data, offset
):
    with pytest.raises(ValueError, match=rf"{name}: not UTF-8 at byte {offset}, "):
        read_corpus(_write(tmp_path / name, data))


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["nothing", "mark"])
def test_empty_file_is_refused(tmp_path, name, data):
    with pytest.raises(ValueError, match=f"{name}' is empty: there is no text in it"):
        read_corpus(_write(tmp_path / name, data))


def test_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"plays.*no such file or folder"):
        read_corpus(tmp_path / "plays")


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=r"pipe\.txt: not a file"):
        read_corpus(tmp_path / "pipe.txt")


# --- A folder -------------------------------------------------------------------------


def test_folder_gives_its_text_files_by_sorted_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a-b").mkdir()
    for name in ["b.txt", "a/z.txt", "a-b/x.txt", "a/c.TXT", "notes.md"]:
        _write(tmp_path / name, name)
    read = read_corpus(tmp_path)
    assert read.documents == ("a/c.TXT", "a/z.txt", "a-b/x.txt", "b.txt")
    assert read.name == tmp_path.name


def test_folder_that_links_to_itself_is_read_once(tmp_path):
    _write(tmp_path / "play.txt", "To be")
    (tmp_path / "again.txt").symlink_to(tmp_path)
    assert read_corpus(tmp_path).documents == ("To be",)


def test_link_to_a_text_file_is_read(tmp_path):
    folder = tmp_path / "plays"
    folder.mkdir()
    (folder / "play.txt").symlink_to(_write(tmp_path / "elsewhere", "To be"))
    assert read_corpus(folder).documents == ("To be",)


def test_link_that_leads_in_a_circle_is_refused(tmp_path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(ValueError, match=r"loop\.txt: not a file, or a link"):
        read_corpus(tmp_path)


def test_empty_files_of_a_folder_are_passed_over(tmp_path):
    _write(tmp_path / "a.txt", "")
    _write(tmp_path / "b.txt", "To be")
    assert read_corpus(tmp_path).documents == ("To be",)


def test_folder_without_text_is_refused(tmp_path):
    _write(tmp_path / "notes.md", "To be")
    with pytest.raises(ValueError, match="is empty"):
        read_corpus(tmp_path)


def test_folder_with_one_bad_file_names_that_file(tmp_path):
    _write(tmp_path / "a.txt", "To be")
    _write(tmp_path / "b.txt", b"or \xff")
    with pytest.raises(ValueError, match=r"b\.txt: not UTF-8 at byte 3"):
        read_corpus(tmp_path)


# --- JSON lines -----------------------------------------------------------------------


@given(texts=documents, ascii_only=st.booleans())
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_give_one_document_each(tmp_path_factory, end, texts, ascii_only):
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    path = tmp_path_factory.mktemp("corpus") / "plays.jsonl"
    assert read_corpus(_write(path, end.join(lines))).documents == tuple(texts)
    assert read_corpus(_write(path, end.join(lines) + end)).documents == tuple(texts)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('"a"', "it is a str"),
        ("[]", "it is a list"),
        ("null", "it is a NoneType"),
        ("{}", "it has no 'text'"),
        ('{"body": "a"}', "it has no 'text'"),
        ('{"text": 3}', "its 'text' is a int"),
        ('{"text": null}', "its 'text' is a NoneType"),
        ('{"text": "a", "id": 3}', "it also has 'id'"),
        ('{"text": "a", "text": "b"}', "a name stands twice"),
        ('{"text": "a"', "it is no JSON"),
        ('{"text": "a"} {"text": "b"}', "it is no JSON"),
        (r'{"text": "\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "it is no JSON"),
        ("", "it is no JSON"),
    ],
    ids=lambda value: value[:24],
)
def test_line_of_another_shape_is_refused_with_file_and_line(tmp_path, line, fault):
    path = _write(tmp_path / "plays.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "b"}}')
    with pytest.raises(ValueError, match=rf"plays\.jsonl, line 2: must be .*{fault}"):
        read_corpus(path)


# --- What a corpus is -----------------------------------------------------------------


def test_digest_of_one_document_is_that_of_its_bytes():
    assert Corpus(("né",)).sha256 == hashlib.sha256(b"n\xc3\xa9").hexdigest()


@given(documents, documents)
def test_digests_are_equal_where_documents_are_and_nowhere_else(some, others):
    same = Corpus(tuple(some)).sha256 == Corpus(tuple(others), name="else").sha256
    assert same == (some == others)


def test_digest_tells_where_documents_end():
    assert Corpus(("ab", "c")).sha256 != Corpus(("a", "bc")).sha256


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ((), "is empty"),
        ("abc", "must be a sequence of texts"),
        (("a", ""), r"documents\[1\] must not be empty"),
        (("a", b"b"), r"documents\[1\] must be a text, got a bytes"),
        (("a\ud800",), r"documents\[0\] holds half of a surrogate pair at character 1"),
    ],
)
def test_corpus_refuses_what_is_no_text(texts, fault):
    with pytest.raises(ValueError, match=fault):
        Corpus(texts)


# --- The split ------------------------------------------------------------------------


def test_split_of_tinyshakespeare_is_that_of_nanogpt():
    text = read_corpus().text
    train, validation = split(read_corpus())
    assert train.text == text[: int(len(text) * 0.9)]
    assert validation.text == text[int(len(text) * 0.9) :]
    assert train.name == "tinyshakespeare:train"
    assert validation.name == "tinyshakespeare:validation"


@given(documents.filter(lambda texts: sum(map(len, texts)) > 1), st.floats(0.05, 0.95))
def test_split_parts_are_the_corpus_in_order_cut_once(texts, share):
    total = sum(map(len, texts))
    cut = int(total * (1 - share))
    if not 0 < cut < total:
        with pytest.raises(ValueError, match="must leave some to each part"):
            split(Corpus(tuple(texts)), share)
        return
    train, validation = split(Corpus(tuple(texts)), share)
    assert train.text + validation.text == "".join(texts)
    assert train.num_characters == cut
    parts = len(train.documents) + len(validation.documents)
    assert parts - len(texts) in (0, 1)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), "0.1", True, None])
def test_split_refuses_a_share_out_of_range(share):
    with pytest.raises(ValueError, match=r"validation must be a number in \(0, 1\)"):
        split(Corpus(("To be",)), share)
