"""Text to train on: from a file, a folder, JSON lines, or the package itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haiku_mqa.errors import FormatError

_EMBEDDED = Path(__file__).with_name("tinyshakespeare.txt.xz")
_EMBEDDED_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_JSON_LINES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class Corpus:
    r"""Documents, in order.

    Attributes:
      documents: Their texts, none of them empty.
      name: What people call it; the file's or folder's name, without its path.
      sha256: Hexadecimal digest. Of the one document's UTF-8 bytes, or, where there
        are several, of their digests in order. Equal corpora have equal digests,
        whatever their names.

    Raises:
      ValueError: There is no document, or one is empty or holds half of a
        surrogate pair, which UTF-8 cannot say.

    Example:
      >>> corpus = Corpus(("To be,", "or not to be."), name="hamlet")
      >>> corpus.num_characters, corpus.text
      (19, 'To be,or not to be.')
      >>> corpus.sha256[:8]
      'eec86627'
    """

    documents: tuple[str, ...]
    name: str = "corpus"
    sha256: str = dataclasses.field(init=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.documents, str):
            raise ValueError("documents must be a sequence of texts, got a single text")
        object.__setattr__(self, "documents", tuple(self.documents))
        if not self.documents:
            raise ValueError(f"corpus {self.name!r} is empty: it has no document")
        digests = [_digest(i, text) for i, text in enumerate(self.documents)]
        whole = digests[0] if len(digests) == 1 else _sha256(b"".join(digests))
        object.__setattr__(self, "sha256", whole.hex())

    @property
    def text(self) -> str:
        """All documents, one after another with nothing between."""
        return "".join(self.documents)

    @property
    def num_characters(self) -> int:
        """How many characters (code points) the documents have together."""
        return sum(map(len, self.documents))

    @property
    def num_bytes(self) -> int:
        """How many bytes of UTF-8 the documents have together."""
        return sum(len(text.encode()) for text in self.documents)


def read_corpus(source: str | os.PathLike[str] | None = None) -> Corpus:
    r"""Reads a corpus.

    Text is UTF-8, with or without a byte order mark, and is kept as it is: line
    endings are not changed. Files and lines without text are passed over.

    Args:
      source: What to read. ``None`` is the corpus in the package, tinyshakespeare
        (Karpathy 2015, *The Unreasonable Effectiveness of Recurrent Neural
        Networks*): 1,115,394 characters of Shakespeare's plays. A folder gives one
        document for each ``.txt`` file in it or in folders below it, by sorted
        path; links to folders are not followed. A ``.jsonl`` or ``.ndjson`` file
        gives one for each line, which must be ``{"text": "..."}`` and no more. Any
        other file is one document.

    Returns:
      The corpus.

    Raises:
      ValueError: There is no such file, it is not UTF-8 (file and byte offset are
        named), a line has another shape (file and line are named), or there is no
        text at all.
      FormatError: The package's own corpus is damaged.

    Example:
      >>> corpus = read_corpus()
      >>> corpus.name, len(corpus.documents), corpus.num_characters
      ('tinyshakespeare', 1, 1115394)
      >>> corpus.text[:14]
      'First Citizen:'
    """
    if source is None:
        return _read_embedded(_EMBEDDED)
    path = Path(source)
    if path.is_dir():
        documents = [_read_text(file) for file in _text_files(path)]
    elif not path.exists():
        raise ValueError(f"corpus {str(path)!r}: there is no such file or folder")
    elif path.suffix.lower() in _JSON_LINES:
        documents = list(_read_json_lines(path))
    else:
        documents = [_read_text(path)]
    documents = tuple(filter(None, documents))
    if not documents:
        raise ValueError(f"corpus {str(path)!r} is empty: there is no text in it")
    return Corpus(documents, name=os.path.basename(os.path.abspath(path)))


def split(corpus: Corpus, validation: float = 0.1) -> tuple[Corpus, Corpus]:
    """Returns a corpus in two parts, cut by position as char-rnn and nanoGPT do.

    The last part is for validation. The cut may fall within a document.

    Args:
      corpus: What to cut.
      validation: The share of characters that the last part takes, in (0, 1).

    Returns:
      The part to train on and the part to validate on.

    Raises:
      ValueError: The share is out of range, or leaves one part without text.

    Example:
      >>> train, validation = split(read_corpus())
      >>> train.num_characters, validation.num_characters
      (1003854, 111540)
    """
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        raise ValueError(f"validation must be a number in (0, 1), got {validation!r}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a number in (0, 1), got {validation!r}")
    total = corpus.num_characters
    cut = int(total * (1 - validation))
    if not 0 < cut < total:
        raise ValueError(
            f"validation = {validation!r} of {total} characters must leave some to "
            f"each part, got {cut} to train on and {total - cut} to validate on"
        )
    first, last, start = [], [], 0
    for text in corpus.documents:
        here = min(max(cut - start, 0), len(text))
        first.append(text[:here])
        last.append(text[here:])
        start += len(text)
    return (
        Corpus(tuple(filter(None, first)), name=f"{corpus.name}:train"),
        Corpus(tuple(filter(None, last)), name=f"{corpus.name}:validation"),
    )


# --- Files ----------------------------------------------------------------------------


def _read_embedded(path: Path) -> Corpus:
    try:
        data = lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError(f"{path.name} is damaged: {error}") from None
    found = _sha256(data).hex()
    if found != _EMBEDDED_SHA256:
        raise FormatError(
            f"{path.name} is damaged: the sha256 of its text must be "
            f"{_EMBEDDED_SHA256}, got {found}"
        )
    return Corpus((data.decode(),), name="tinyshakespeare")


def _text_files(folder: Path) -> list[Path]:
    found = []
    for parent, _, names in os.walk(folder, onerror=_raise):
        found += [Path(parent, name) for name in names if name.lower().endswith(".txt")]
    # By parts: as strings, "a-b/x" would come before "a/x".
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _raise(error: OSError) -> None:
    raise ValueError(f"corpus folder cannot be read: {error}") from error


def _read_text(path: Path) -> str:
    if not path.is_file():
        # A pipe would never end, and could not be read again to resume.
        raise ValueError(f"{path}: not a file, or a link that leads to none")
    data = path.read_bytes()
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {error.start}, which is "
            f"0x{data[error.start]:02x} ({error.reason})"
        ) from None


def _read_json_lines(path: Path) -> Iterator[str]:
    # Not splitlines: JSON strings may hold other line ends than these as they are.
    lines = _read_text(path).split("\n")
    if not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            yield _text_of_line(line)
        except ValueError as error:
            raise ValueError(
                f'{path}, line {number}: must be {{"text": "..."}} and no more; {error}'
            ) from None


def _text_of_line(line: str) -> str:
    try:
        value = json.loads(line, object_pairs_hook=_object_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if fault := _fault_of_shape(value):
        raise ValueError(fault)
    if any("\ud800" <= letter <= "\udfff" for letter in value["text"]):
        raise ValueError("its text holds half of a surrogate pair")
    return value["text"]


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return dict(pairs)


def _fault_of_shape(value: object) -> str:
    """Returns what is wrong with a line's value; nothing if nothing is."""
    if not isinstance(value, dict):
        return f"it is a {type(value).__name__}"
    if "text" not in value:
        return "it has no 'text'"
    if not isinstance(value["text"], str):
        return f"its 'text' is a {type(value['text']).__name__}"
    others = sorted(set(value) - {"text"})
    return f"it also has {', '.join(map(repr, others))}" if others else ""


def _digest(index: int, text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError(
            f"documents[{index}] must be a text, got a {type(text).__name__}"
        )
    if not text:
        raise ValueError(f"documents[{index}] must not be empty")
    try:
        return _sha256(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"documents[{index}] holds half of a surrogate pair at character "
            f"{error.start}"
        ) from None


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
