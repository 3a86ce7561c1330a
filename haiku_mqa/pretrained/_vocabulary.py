"""What a GGUF file's metadata says of its tokenizer, held to make sense."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from haiku_mqa.errors import FormatError, unknown_name
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained.special_tokens import SpecialTokens

MODELS = ("gpt2",)
PRE_TOKENIZERS = ("smollm",)

# How the file tells tokens apart.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_KINDS = range(1, 7)
_END_OF_TURN = "<|im_end|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary(SpecialTokens):
    """All that a byte-pair tokenizer is made of.

    Attributes:
      tokens: Each id's text; bytes are spelled in GPT-2's alphabet.
      merges: Which neighbours become one, the first before the later ones.
      control: Ids of the tokens that steer the model and are no text.
      user_defined: Ids of the tokens that are found in text before anything else.
    """

    tokens: list[str]
    merges: list[tuple[str, str]]
    control: tuple[int, ...]
    user_defined: tuple[int, ...]


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Returns the vocabulary in a GGUF file's metadata.

    Args:
      metadata: As ``read_gguf`` returns it.

    Returns:
      The vocabulary.

    Raises:
      ValueError: The file's tokenizer is of a kind that is not known here.
      FormatError: A key is missing, or its value makes no sense.
    """
    _require_known(metadata, "tokenizer.ggml.model", MODELS)
    _require_known(metadata, "tokenizer.ggml.pre", PRE_TOKENIZERS)
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise FormatError("tokenizer.ggml.tokens has the same token twice")
    kinds = _kinds(metadata, len(tokens))
    bos = _token_id(metadata, "bos_token_id", tokens)
    eos = _token_id(metadata, "eos_token_id", tokens)
    end = [eos, _token_id(metadata, "eot_token_id", tokens)]
    end += [tokens.index(_END_OF_TURN)] if _END_OF_TURN in tokens else []
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise FormatError(
            f"tokenizer.chat_template must be a string, got {in_one_line(template)}"
        )
    return Vocabulary(
        tokens=tokens,
        merges=_merges(metadata, tokens),
        control=_of_kind(kinds, _UNKNOWN, _CONTROL),
        user_defined=_of_kind(kinds, _USER_DEFINED),
        bos_token=bos,
        # A dictionary, because it keeps the order and drops what is there twice.
        end_tokens=tuple(dict.fromkeys(token for token in end if token is not None)),
        prefix=_added(metadata, "add_bos_token", "bos_token_id", bos),
        suffix=_added(metadata, "add_eos_token", "eos_token_id", eos),
        chat_template=template,
    )


def _require_known(
    metadata: Mapping[str, Any], key: str, known: tuple[str, ...]
) -> None:
    value = metadata.get(key)
    if value is None:
        raise FormatError(f"metadata {key!r} is missing")
    if value not in known:
        text = value if isinstance(value, str) else in_one_line(value)
        raise unknown_name(key, text[:80], known)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if value is None:
        raise FormatError(f"metadata {key!r} is missing")
    if not isinstance(value, list) or not value:
        raise FormatError(
            f"{key} must be an array of strings, got {in_one_line(value)}"
        )
    return value


def _kinds(metadata: Mapping[str, Any], count: int) -> np.ndarray:
    key = "tokenizer.ggml.token_type"
    kinds = metadata.get(key)
    if kinds is None:
        raise FormatError(f"metadata {key!r} is missing")
    if not isinstance(kinds, np.ndarray) or kinds.dtype.kind not in "iu":
        raise FormatError(
            f"{key} must be an array of whole numbers, got {in_one_line(kinds)}"
        )
    if len(kinds) != count:
        raise FormatError(
            f"{key} has {len(kinds)} entries, but there are {count} tokens"
        )
    wrong = (kinds < _KINDS[0]) | (kinds > _KINDS[-1])
    if wrong.any():
        raise FormatError(
            f"{key} must be from {_KINDS[0]} to {_KINDS[-1]}, got {kinds[wrong][0]}"
        )
    return kinds


def _of_kind(kinds: np.ndarray, *wanted: int) -> tuple[int, ...]:
    return tuple(np.flatnonzero(np.isin(kinds, wanted)).tolist())


def _merges(metadata: Mapping[str, Any], tokens: list[str]) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    known = {token: token for token in tokens}  # to hold the text of each once
    merges: list[tuple[str, str]] = []
    for i, merge in enumerate(_strings(metadata, key)):
        pair = tuple(merge.split(" "))
        if len(pair) != 2 or not all(pair):
            raise FormatError(
                f"{key}[{i}] must be two tokens with a space between, got "
                f"{in_one_line(merge)}"
            )
        for token in (*pair, "".join(pair)):
            if token not in known:
                raise FormatError(
                    f"{key}[{i}] is {in_one_line(merge)}, but there is no token "
                    f"{in_one_line(token)}"
                )
        merges.append(cast(tuple[str, str], tuple(known[token] for token in pair)))
    if len(set(merges)) != len(merges):
        raise FormatError(f"{key} has the same merge twice")
    return merges


def _token_id(metadata: Mapping[str, Any], name: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < len(tokens):
        raise FormatError(
            f"{key} must be a token id from 0 to {len(tokens) - 1}, got "
            f"{in_one_line(value)}"
        )
    return value


def _added(
    metadata: Mapping[str, Any], flag: str, token_key: str, token: int | None
) -> tuple[int, ...]:
    key = f"tokenizer.ggml.{flag}"
    wanted = metadata.get(key, False)
    if not isinstance(wanted, bool):
        raise FormatError(f"{key} must be a boolean, got {in_one_line(wanted)}")
    if not wanted:
        return ()
    if token is None:
        raise FormatError(f"{key} is true, but tokenizer.ggml.{token_key} is missing")
    return (token,)
