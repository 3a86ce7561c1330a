"""Tokens in a file that is mapped into memory, and never read whole.

It is a ``.npy`` file of one axis, which ``numpy.load`` reads too.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, SupportsIndex

import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa._files import whole_file
from haiku_mqa.errors import FormatError
from haiku_mqa.text.tokenizer import Tokenizer
from haiku_mqa.training.corpus import Corpus
from haiku_mqa.training.data import as_tokens

_MAGIC = b"\x93NUMPY\x01\x00"
_START = len(_MAGIC) + 2  # of the header's text, after two bytes with its length
_HEADER_SIZE = 128  # of what is written, in bytes; tokens begin at a multiple of 64
_LONGEST_HEADER = 1024  # of what is read, in bytes
_DTYPES = {"<u2": "uint16", "<u4": "uint32", "<i4": "int32"}
_TEXT = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (?:False|True), "
    rb"'shape': \((\d{1,19}),\), \} *\n"
)
_PIECE = 2**20  # tokens that are held at a time


def write_tokens(
    path: str | os.PathLike[str],
    tokens: Corpus | Iterable[SupportsIndex],
    tokenizer: Tokenizer,
) -> int:
    """Writes tokens as a file that ``open_tokens`` maps into memory.

    A crash leaves what was there, or all of the new file. A token takes two bytes
    where the vocabulary has at most 65,536, else four. No more than a document of
    tokens is held at a time.

    Args:
      path: Where the file goes; what is there is replaced.
      tokens: A corpus, which becomes what ``encode_corpus`` makes of it; or tokens,
        one after another, from anything that yields them.
      tokenizer: What reads the corpus, or made the tokens.

    Returns:
      How many tokens were written.

    Raises:
      ValueError: There is no token, one is not in the vocabulary, or a document cannot
        be said in it.
      OSError: The folder is not there, cannot be written or is full.

    Example:
      >>> import tempfile
      >>> from haiku_mqa.text import CharacterTokenizer
      >>> tokenizer = CharacterTokenizer("banana")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_tokens(f"{folder}/train.npy", Corpus(("banana",)), tokenizer)
      ...     np.load(f"{folder}/train.npy")
      6
      array([1, 0, 2, 0, 2, 0], dtype=uint16)
    """
    size = whole_number("tokenizer.vocab_size", tokenizer.vocab_size, 1, 2**31)
    # A batch's tokens are int32, so none is above what uint32 and int32 share.
    form = "<u2" if size <= 2**16 else "<u4"
    total = 0
    with whole_file(path) as file:
        file.write(b"\0" * _HEADER_SIZE)  # how many there are is known in the end
        for piece in _pieces(tokens, tokenizer):
            _check_vocabulary(piece, size, total)
            file.write(piece.astype(form).tobytes())
            total += len(piece)
        if not total:
            raise ValueError("tokens must be at least one, got none")
        file.seek(0)
        file.write(_header(form, total))
    return total


def open_tokens(
    path: str | os.PathLike[str], vocab_size: int | None = None
) -> np.ndarray:
    """Opens a file of tokens as an array that the system reads piece by piece.

    Its size is held to what its header says before anything is mapped.

    Args:
      path: A file from ``write_tokens``, or a ``.npy`` file of one axis of
        little-endian uint16, uint32 or int32.
      vocab_size: V, to be sure that every token is below it, which reads the whole
        file once; tokens are not looked at if ``None``.

    Returns:
      Whole numbers ``[num_tokens]``, a read-only ``numpy.memmap``.

    Raises:
      FormatError: The file is another one, damaged, or shorter or longer than it says;
        the file and the byte are named.
      OSError: There is no such file, or it cannot be read.

    Example:
      >>> import tempfile
      >>> from haiku_mqa.text import ByteTokenizer
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = f"{folder}/train.npy"
      ...     count = write_tokens(path, [104, 101, 108, 108, 111], ByteTokenizer())
      ...     tokens = open_tokens(path, vocab_size=256)
      >>> tokens[1:3].tolist(), tokens.flags.writeable
      ([101, 108], False)
    """
    if vocab_size is not None:
        vocab_size = whole_number("vocab_size", vocab_size)
    with open(path, "rb") as file:
        form, count, start = _read_header(Path(path), file)
        tokens = np.memmap(file, form, "r", start, (count,))
    if vocab_size is not None:
        _check_file(Path(path), tokens, vocab_size, start)
    return tokens


def _pieces(tokens: Any, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    if isinstance(tokens, Corpus):
        end = np.asarray(tokenizer.end_tokens[:1], np.int64)
        for index, text in enumerate(tokens.documents):
            if index:
                yield end
            yield np.asarray(tokenizer.encode(text), np.int64)
    elif isinstance(tokens, np.ndarray):
        array = as_tokens("tokens", tokens)
        for begin in range(0, len(array), _PIECE):
            yield array[begin : begin + _PIECE]
    elif not isinstance(tokens, Iterable):
        raise ValueError(f"tokens must be a Corpus or yield tokens, got {tokens!r}")
    else:
        remaining = iter(tokens)
        while piece := list(itertools.islice(remaining, _PIECE)):
            yield as_tokens("tokens", piece)


def _check_vocabulary(piece: np.ndarray, size: int, before: int) -> None:
    bad = np.flatnonzero((piece < 0) | (piece >= size))
    if len(bad):
        raise ValueError(
            f"tokens must be from 0 to {size - 1} (V = {size}), "
            f"got {piece[bad[0]]} at place {before + bad[0]}"
        )


# --- The file -------------------------------------------------------------------------


def _header(form: str, count: int) -> bytes:
    text = f"{{'descr': '{form}', 'fortran_order': False, 'shape': ({count},), }}"
    size = _HEADER_SIZE - _START
    return _MAGIC + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


def _read_header(path: Path, file: BinaryIO) -> tuple[str, int, int]:
    """Returns dtype, count and first byte of a file's tokens, if all of it is there."""

    def fail(at: int, message: str) -> NoReturn:
        raise FormatError(f"{path}: byte {at}: {message}")

    available = os.fstat(file.fileno()).st_size
    begin = file.read(_START)
    if begin[: len(_MAGIC)] != _MAGIC[: len(begin)] or not begin:
        fail(0, "this is no .npy file of version 1.0, as write_tokens writes it")
    if len(begin) < _START:
        fail(len(begin), f"the file ends within its first {_START} bytes")
    size = int.from_bytes(begin[-2:], "little")
    start = _START + size
    if size > _LONGEST_HEADER:
        fail(_START - 2, f"a header of {size} bytes, above {_LONGEST_HEADER}")
    if start > available:
        fail(available, f"the file ends within its header of {start} bytes")
    match = _TEXT.fullmatch(file.read(size))
    if not match:
        fail(_START, "the header is not that of an array of one axis")
    form, count = match[1].decode("latin-1"), int(match[2])
    if form not in _DTYPES:
        fail(_START, f"tokens are {form!r}, and must be one of {', '.join(_DTYPES)}")
    promised = start + count * np.dtype(form).itemsize
    if promised != available:
        what = "is cut off" if available < promised else "goes on"
        fail(
            min(available, promised),
            f"the file {what} here: {count} tokens of {_DTYPES[form]} make it "
            f"{promised} bytes, and it has {available}",
        )
    return form, count, start


def _check_file(path: Path, tokens: np.ndarray, size: int, start: int) -> None:
    for begin in range(0, len(tokens), _PIECE):
        piece = tokens[begin : begin + _PIECE]
        bad = np.flatnonzero((piece < 0) | (piece >= size))
        if len(bad):
            at = start + (begin + int(bad[0])) * tokens.itemsize
            raise FormatError(
                f"{path}: byte {at}: token {piece[bad[0]]} is not from 0 to "
                f"{size - 1} (V = {size})"
            )
