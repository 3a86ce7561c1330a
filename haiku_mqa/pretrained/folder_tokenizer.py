"""Text to tokens and back, by the ``tokenizer.json`` of a Hugging Face folder."""

from __future__ import annotations

import json
import operator
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers

from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._tensor_files import read_json
from haiku_mqa.pretrained._tokenizer_files import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    Named,
    read_named,
)
from haiku_mqa.pretrained.chat_tokenizer import ChatTokenizer
from haiku_mqa.pretrained.special_tokens import SpecialTokens

# No vocabulary has more; ids of more would not fit into 32 bits either.
_MOST_TOKENS = 2**31
_GUARD = "\U0001fffe"  # never text, and none that marks a place in messages


def tokenizer_from_folder(
    folder: str | os.PathLike[str], *, vocab_size: int | None = None
) -> FolderTokenizer | None:
    """Returns the tokenizer of a Hugging Face folder.

    ``tokenizer.json`` says how text is split; ``tokenizer_config.json`` what begins
    and ends it, and the chat template, where ``chat_template.jinja`` does not;
    ``generation_config.json``, or else ``config.json``, what more ends an answer. All
    but the first may be missing.

    Args:
      folder: The model's.
      vocab_size: V of the model; the tokenizer's own if ``None``.

    Returns:
      The tokenizer; ``None`` where there is no ``tokenizer.json``.

    Raises:
      FormatError: A file is damaged, a key in it cannot be, or the vocabulary is
        larger than the model's; names file and key.
      OSError: A file cannot be read.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     print(tokenizer_from_folder(folder))
      None
    """
    path = Path(folder) / TOKENIZER
    if not path.exists():
        return None
    data = read_json(path)
    tokenizer = _library(path, data)
    size = len(tokenizer.get_vocab(with_added_tokens=False))
    if vocab_size is not None and size > vocab_size:
        raise FormatError(
            f"{path} is of another model: it has {size} tokens, and vocab_size is "
            f"{vocab_size}"
        )
    named = read_named(Path(folder))
    return FolderTokenizer(tokenizer, data, named, path, vocab_size)


class FolderTokenizer(ChatTokenizer):
    """What a ``tokenizer.json`` says, as the ``tokenizers`` library does it.

    Byte pairs, pieces of sentences and whatever else the library knows. Its ids are
    those of transformers, but for text of a stranger that spells a control token.

    Example:
      >>> import json, pathlib, tempfile
      >>> words = {"model": {"type": "WordLevel", "vocab": {"to": 0, "be": 1},
      ...     "unk_token": "to"}, "pre_tokenizer": {"type": "Whitespace"}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "tokenizer.json"
      ...     _ = path.write_text(json.dumps(words))
      ...     tokenizer = tokenizer_from_folder(folder)
      >>> tokenizer.encode("be to"), tokenizer.decode([0, 1])
      ([1, 0], 'to be')
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        data: Mapping[str, Any],
        named: Named,
        path: Path,
        vocab_size: int | None,
    ):
        """Builds it; ``tokenizer_from_folder`` is the usual way."""
        bos = _id_of(tokenizer, "bos_token", named.bos_token, path)
        eos = _id_of(tokenizer, "eos_token", named.eos_token, path)
        # What is named so is a control token, whatever the other file says.
        ends = [text for text in (named.bos_token, named.eos_token) if text]
        tokenizer.add_special_tokens(ends)
        self._tokenizer = tokenizer
        self._size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        self._most = max(self._size, vocab_size or 0)
        if self._most > _MOST_TOKENS:
            raise FormatError(f"{path}: ids must be below {_MOST_TOKENS}")
        added = tokenizer.get_added_tokens_decoder()
        control = {
            token.content
            for token in added.values()
            if token.special and len(token.content) > 1
        }
        # Only this writes it, so that text cannot: it is drawn anew each time.
        self._guard = f"{_GUARD}{secrets.token_hex(8)}{_GUARD}"
        self._guarded = _guarded(data, added, control, self._guard, path)
        self._ids = {
            self._guarded.token_to_id(
                f"{self._guard if token.content in control else ''}{token.content}"
            ): index
            for index, token in added.items()
            if token.content in control or not token.special
        }
        prefix, suffix = _around(tokenizer, named, bos, eos)
        known = (index for index in named.end_tokens if index < self._most)
        everything = [eos, *known] if eos is not None else [*known]
        super().__init__(
            SpecialTokens(
                bos_token=bos,
                end_tokens=tuple(dict.fromkeys(everything)),
                prefix=prefix,
                suffix=suffix,
                chat_template=named.chat_template,
            ),
            control,
        )

    @property
    def vocab_size(self) -> int:
        """V, how many tokens there are, control tokens included."""
        return self._size

    def decode(
        self, ids: Iterable[SupportsIndex], *, skip_special_tokens: bool = True
    ) -> str:
        """Returns the text of tokens.

        Args:
          ids: Whole numbers. A model can have more ids than there are tokens; those
            say nothing.
          skip_special_tokens: Whether control tokens are left out, or spelled.

        Returns:
          The text; bytes that are no UTF-8 become U+FFFD.

        Raises:
          ValueError: An id is no token's, and none of the model's.
        """
        return self._tokenizer.decode(
            [self._checked(token) for token in ids],
            skip_special_tokens=skip_special_tokens,
        )

    def to_library(self) -> tokenizers.Tokenizer:
        """Returns it as the ``tokenizers`` library has it."""
        return self._tokenizer

    def _checked(self, token: SupportsIndex) -> int:
        index = operator.index(token)
        if not 0 <= index < self._most:
            raise ValueError(
                f"token id must be from 0 to {self._most - 1}, got {index}"
            )
        return index

    def _encode_text(self, text: str) -> list[int]:
        try:
            ids = self._guarded.encode(text, add_special_tokens=False).ids
        except Exception:  # which has no class of its own
            raise ValueError(
                f"text has {self._unknown_in(text)!r}, for which the vocabulary has no "
                "token"
            ) from None
        return [self._ids.get(index, index) for index in ids]

    def _unknown_in(self, text: str) -> str:
        for character in text:
            try:
                self._guarded.encode(character, add_special_tokens=False)
            except Exception:  # likewise
                return character
        return text

    def _encode_with_control(self, text: str, mark: str = "") -> list[int]:
        guard = self._guard
        text = self._control_pattern.sub(lambda match: guard + match[0], text)
        return self._encode_text(text.replace(mark, "") if mark else text)

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.id_to_token(token) or ""


def _library(path: Path, data: Mapping[str, Any]) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise FormatError(
            f"{path} is no tokenizer that is known: {in_one_line(str(error))}"
        ) from None


def _guarded(
    data: Mapping[str, Any],
    added: Mapping[int, tokenizers.AddedToken],
    control: Iterable[str],
    guard: str,
    path: Path,
) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose control tokens no text spells, as it has no guard."""
    bare = _library(path, {**data, "added_tokens": [], "post_processor": None})
    for token in added.values():
        options = {
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
        }
        if token.content in control:
            guarded = tokenizers.AddedToken(
                guard + token.content, normalized=False, special=True, **options
            )
            bare.add_special_tokens([guarded])
        elif not token.special:
            bare.add_tokens([token])
    return bare


def _id_of(
    tokenizer: tokenizers.Tokenizer, key: str, text: str | None, path: Path
) -> int | None:
    if text is None:
        return None
    found = tokenizer.token_to_id(text)
    if found is None:
        raise FormatError(
            f"{path.parent / TOKENIZER_CONFIG}: {key} must be a token of {path.name}, "
            f"got {in_one_line(text)}"
        )
    return found


def _around(
    tokenizer: tokenizers.Tokenizer, named: Named, bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns what is put before and after a text."""
    if tokenizer.post_processor is None:  # else its word counts, and not these
        return (
            (bos,) if named.add_bos_token and bos is not None else (),
            (eos,) if named.add_eos_token and eos is not None else (),
        )
    # The file says it as a program over texts: it is run on one.
    encoding = tokenizer.encode("a")
    pairs = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))
    own = [place for place, (_, is_added) in enumerate(pairs) if not is_added]
    if not own:
        return tuple(encoding.ids), ()
    before, after = encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]
    return tuple(before), tuple(after)
