"""Everything that a model file holds, in one go."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from haiku_mqa._keep import Keep, on_device
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained.gguf import GGUFFile, read_gguf
from haiku_mqa.pretrained.gguf_params import Params, config_from_gguf, params_from_gguf
from haiku_mqa.pretrained.tokenizer import Tokenizer, tokenizer_from_gguf

# What the tokenizer holds already, tens of thousands of entries long.
_VOCABULARY = (
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained decoder, before a model is built of it.

    Attributes:
      config: What the decoder is.
      params: Module paths to names to arrays, of ``config.param_dtype``.
      tokenizer: Its tokenizer.
      metadata: What else the file says, as plain data that JSON can hold: name,
        licence, languages and the like.
    """

    config: DecoderConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    metadata: dict[str, Any] = dataclasses.field(repr=False)


def read_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: DType = "float32",
    keep: Keep = on_device,
) -> Pretrained:
    """Reads a model file.

    Args:
      path: A ``.gguf`` file.
      dtype: What the decoder computes in, and what its parameters become.
      keep: What becomes of each parameter, as ``params_from_gguf``.

    Returns:
      Its config, parameters, tokenizer and metadata.

    Raises:
      ValueError: The file is no ``.gguf`` file, or asks for what is not supported.
      FormatError: The file is damaged, or makes no sense.
      OSError: The file cannot be opened.

    Example:
      >>> read_pretrained("model.safetensors")
      Traceback (most recent call last):
      ValueError: path must name a .gguf file, got 'model.safetensors'
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".gguf":
        raise ValueError(f"path must name a .gguf file, got {str(path)!r}")
    file = read_gguf(path)
    try:
        config = config_from_gguf(file, dtype=dtype)
        tokenizer = tokenizer_from_gguf(file.metadata)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Pretrained(
        config, params_from_gguf(file, config, keep), tokenizer, _plain_metadata(file)
    )


def _plain_metadata(file: GGUFFile) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in file.metadata.items()
        if key not in _VOCABULARY
    }
