"""What a GGUF file's metadata says of its tokenizer, held to make sense."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from haiku_mqa.errors import FormatError, unknown_name
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained.special_tokens import SpecialTokens

# By what the file calls its model: byte pairs, or pieces of sentences.
BYTE_PAIRS, SENTENCE_PIECES = "gpt2", "llama"
MODELS = (BYTE_PAIRS, SENTENCE_PIECES)
# How text is cut before bytes are paired, by all of the names that files have for it.
PRE_TOKENIZERS = {
    "falcon": "falcon",
    "gpt-2": "gpt-2",
    "llama-bpe": "llama-bpe",
    "llama-v3": "llama-bpe",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "smollm": "smollm",
}

# How the file tells tokens apart.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_KINDS = range(1, 7)
_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
# Letters, at each of which a piece of a stranger is cut; real ones are far shorter.
_LONGEST_PIECE = 512
_A_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary(SpecialTokens):
    """All that a tokenizer is made of.

    Attributes:
      tokens: Each id's text. Of byte pairs it is spelled in GPT-2's alphabet; in
        pieces of sentences a space is U+2581.
      merges: Which neighbours become one, the first before the later ones.
      control: Ids of the tokens that steer the model and are no text.
      user_defined: Ids of the tokens that are found in text before anything else.
      pre: How a text is cut before its bytes are paired; ``None`` where the tokens are
        pieces of sentences.
      bytes: Ids of the tokens that stand for one byte, to that byte. Only among pieces
        of sentences.
      space_first: Whether a text gets a space in front.
    """

    tokens: list[str]
    merges: list[tuple[str, str]]
    control: tuple[int, ...]
    user_defined: tuple[int, ...]
    pre: str | None
    bytes: Mapping[int, bytes] = dataclasses.field(default_factory=dict)
    space_first: bool = False


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
    model = _known(metadata, "tokenizer.ggml.model", MODELS)
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise FormatError("tokenizer.ggml.tokens has the same token twice")
    kinds = _kinds(metadata, len(tokens))
    pieces = model == SENTENCE_PIECES
    pre = None if pieces else _pre(metadata)
    bos = _token_id(metadata, "bos_token_id", tokens)
    eos = _token_id(metadata, "eos_token_id", tokens)
    end = [eos, _token_id(metadata, "eot_token_id", tokens)]
    end += [tokens.index(token) for token in _ENDS_OF_TURN if token in tokens]
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise FormatError(
            f"tokenizer.chat_template must be a string, got {in_one_line(template)}"
        )
    # Where a file does not say it, its kind does.
    begins = pieces or pre == "llama-bpe"
    return Vocabulary(
        tokens=tokens,
        merges=_merges_of_scores(metadata, tokens, kinds)
        if pieces
        else _merges(metadata, tokens),
        control=_of_kind(kinds, _UNKNOWN, _CONTROL),
        user_defined=_of_kind(kinds, _USER_DEFINED),
        pre=pre,
        bytes=_bytes(tokens, kinds) if pieces else {},
        space_first=_flag(metadata, "add_space_prefix", pieces),
        bos_token=bos,
        # A dictionary, because it keeps the order and drops what is there twice.
        end_tokens=tuple(dict.fromkeys(token for token in end if token is not None)),
        prefix=_added(metadata, "add_bos_token", "bos_token_id", bos, begins),
        suffix=_added(metadata, "add_eos_token", "eos_token_id", eos, False),
        chat_template=template,
    )


def _pre(metadata: Mapping[str, Any]) -> str:
    name = _known(metadata, "tokenizer.ggml.pre", tuple(PRE_TOKENIZERS))
    return PRE_TOKENIZERS[name]


def _known(metadata: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    value = metadata.get(key)
    if value is None:
        raise FormatError(f"metadata {key!r} is missing")
    if value not in known:
        text = value if isinstance(value, str) else in_one_line(value)
        raise unknown_name(key, text[:80], known)
    return value


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


def _merges_of_scores(
    metadata: Mapping[str, Any], tokens: list[str], kinds: np.ndarray
) -> list[tuple[str, str]]:
    """Returns the merges that choose as the scores of pieces do (Kudo 2018).

    Of all neighbours that are a piece together, those of the highest score become
    one. That is what merges say, too: all ways to make a piece, by its score.
    """
    scores = _scores(metadata, len(tokens))
    order = np.argsort(-scores, kind="stable")
    known = {tokens[i]: tokens[i] for i in np.flatnonzero(kinds == _NORMAL).tolist()}
    merges: list[tuple[str, str]] = []
    for i in order[kinds[order] == _NORMAL].tolist():
        piece = tokens[i]
        if len(piece) > _LONGEST_PIECE:
            raise FormatError(
                f"tokenizer.ggml.tokens[{i}] is longer than {_LONGEST_PIECE}"
            )
        for cut in range(1, len(piece)):
            left, right = known.get(piece[:cut]), known.get(piece[cut:])
            if left is not None and right is not None:
                merges.append((left, right))
    return merges


def _scores(metadata: Mapping[str, Any], count: int) -> np.ndarray:
    key = "tokenizer.ggml.scores"
    scores = metadata.get(key)
    if scores is None:
        raise FormatError(f"metadata {key!r} is missing")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f":
        raise FormatError(f"{key} must be an array of numbers")
    if len(scores) != count:
        raise FormatError(
            f"{key} has {len(scores)} entries, but there are {count} tokens"
        )
    if np.isnan(scores).any():
        raise FormatError(f"{key} must be numbers, got nan")
    return scores


def _bytes(tokens: list[str], kinds: np.ndarray) -> dict[int, bytes]:
    found = {}
    for i in _of_kind(kinds, _BYTE):
        match = _A_BYTE.fullmatch(tokens[i])
        if match is None:
            raise FormatError(
                f"tokenizer.ggml.tokens[{i}] must be a byte such as '<0x0A>', got "
                f"{in_one_line(tokens[i])}"
            )
        found[i] = bytes.fromhex(match[1])
    return found


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


def _flag(metadata: Mapping[str, Any], flag: str, default: bool) -> bool:
    key = f"tokenizer.ggml.{flag}"
    wanted = metadata.get(key, default)
    if not isinstance(wanted, bool):
        raise FormatError(f"{key} must be a boolean, got {in_one_line(wanted)}")
    return wanted


def _added(
    metadata: Mapping[str, Any],
    flag: str,
    token_key: str,
    token: int | None,
    default: bool,
) -> tuple[int, ...]:
    if not _flag(metadata, flag, default):
        return ()
    if token is None and f"tokenizer.ggml.{flag}" not in metadata:
        return ()
    if token is None:
        raise FormatError(
            f"tokenizer.ggml.{flag} is true, but tokenizer.ggml.{token_key} is missing"
        )
    return (token,)
