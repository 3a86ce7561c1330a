"""What the files beside a ``tokenizer.json`` say, held to make sense; and writing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from haiku_mqa._files import write_whole
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._tensor_files import read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_MOST_TEMPLATE = 2**20  # bytes; what is rendered may be a quarter of it at most
_DEFAULT_TEMPLATE = "default"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """What tokens are named for, by their texts.

    Attributes:
      bos_token: What begins a sequence.
      eos_token: What ends one.
      add_bos_token: Whether it is put before a text, where ``tokenizer.json`` does
        not say what is; ``None`` if nothing is said.
      add_eos_token: Whether it is put after one.
      end_tokens: Ids that end an answer.
      chat_template: Jinja, or ``None``.
    """

    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    end_tokens: tuple[int, ...]
    chat_template: str | None


def read_named(folder: Path) -> Named:
    """Returns what the files of a folder name tokens for.

    Args:
      folder: The model's.

    Raises:
      FormatError: A file is damaged, or a value cannot be; names file and key.
      OSError: A file cannot be read.
    """
    path = folder / TOKENIZER_CONFIG
    config = _read_if_there(path)
    return Named(
        bos_token=_token(config, "bos_token", path),
        eos_token=_token(config, "eos_token", path),
        add_bos_token=_flag(config, "add_bos_token", path),
        add_eos_token=_flag(config, "add_eos_token", path),
        end_tokens=_end_tokens(folder),
        chat_template=_template(config, path, folder / TEMPLATE),
    )


def write_tokenizer(
    folder: Path,
    library: tokenizers.Tokenizer,
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    chat_template: str | None = None,
    split_special_tokens: bool | None = None,
) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
      folder: Which exists.
      library: The tokenizer.
      bos_token: What begins a sequence.
      eos_token: What ends one.
      chat_template: Jinja.
      split_special_tokens: Whether text that spells a special token stays text;
        ``None`` says nothing of it.

    Raises:
      OSError: They cannot be written.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos_token,
        "eos_token": eos_token,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,  # else some versions change the text
        "split_special_tokens": split_special_tokens,
    }
    told = {key: value for key, value in config.items() if value is not None}
    write_whole(folder / TOKENIZER, library.to_str().encode())
    text = json.dumps(told, indent=2)
    write_whole(folder / TOKENIZER_CONFIG, f"{text}\n".encode())


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token(config: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if text is None and value is None:
        return None
    if not isinstance(text, str) or not text:
        raise _wrong(path, key, "a token's text, or a mapping with its content", value)
    return text


def _flag(config: Mapping[str, Any], key: str, path: Path) -> bool | None:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise _wrong(path, key, "true or false", value)
    return value


def _end_tokens(folder: Path) -> tuple[int, ...]:
    for path in (folder / GENERATION, folder / CONFIG):
        value = _read_if_there(path).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise _wrong(path, "eos_token_id", "a token id, or a list of them", value)
        return tuple(ids)
    return ()


def _template(config: Mapping[str, Any], path: Path, beside: Path) -> str | None:
    if beside.exists():
        return _text(beside)
    value = config.get("chat_template")
    if isinstance(value, list):  # several, each with a name
        value = _named_templates(value, path).get(_DEFAULT_TEMPLATE)
    if not isinstance(value, str | None):
        raise _wrong(path, "chat_template", "a text, or a list of named ones", value)
    return value


def _named_templates(value: list[Any], path: Path) -> dict[str, Any]:
    for entry in value:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise _wrong(path, "chat_template", "mappings of name and template", entry)
    return {entry["name"]: entry.get("template") for entry in value}


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_TEMPLATE:
        raise FormatError(f"{path} must be of at most {_MOST_TEMPLATE} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no UTF-8: {error}") from None


def _wrong(path: Path, key: str, allowed: str, value: Any) -> FormatError:
    return FormatError(f"{path}: {key} must be {allowed}, got {in_one_line(value)}")
