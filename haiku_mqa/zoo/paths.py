"""What lies at a path: a folder that holds a model, or a file that does."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa import model_folder
from haiku_mqa._keep import Keep, aligned_empty, on_device
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Params, build
from haiku_mqa.pretrained import (
    config_from_folder,
    config_from_gguf,
    family_of_folder,
    from_pretrained,
    is_pretrained_folder,
    read_gguf,
    read_pretrained,
    stored_dtypes,
    tokenizer_from_folder,
)
from haiku_mqa.text import AnyTokenizer, load_tokenizer
from haiku_mqa.zoo.spec import API_VERSION, ModelMetadata, ModelSpec

_UNVERSIONED = "unversioned"
_CARD = "README.md"
_MOST_OF_CARD = 2**16  # characters


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model at a path, all of it read.

    Attributes:
      config: What the decoder is.
      params: Module paths to names to arrays, of ``config.param_dtype``.
      tokenizer: Its tokenizer, if there is one.
      metadata: What is known of it.
    """

    config: DecoderConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: AnyTokenizer | None
    metadata: ModelMetadata


def read_path(
    path: Path, *, dtype: DType = "float32", keep: Keep = on_device
) -> FoundModel:
    """Reads a model folder or a model file.

    Args:
      path: A folder, as a training run's or Hugging Face's is, or a ``.gguf`` file.
      dtype: What the decoder computes in, and what its parameters become.
      keep: What becomes of each parameter; it is put on the default device if left
        out.

    Returns:
      All that is there.

    Raises:
      ValueError: It is neither.
      FormatError: A file is damaged, or files of a folder do not belong together.
      OSError: Something is not there, or cannot be read.
    """
    if not path.is_dir():
        _check_exists(path)
        read = read_pretrained(path, dtype=dtype, keep=keep)
        about = _about_file(path, read.metadata)
        return FoundModel(read.config, read.params, read.tokenizer, about)
    if is_pretrained_folder(path):
        # First: it is small, and may be what is wrong.
        tokenizer = _foreign_tokenizer(path)
        model, params = from_pretrained(path, dtype=dtype, keep=keep)
        return FoundModel(model.config, params, tokenizer, _about_foreign(path))
    config = dataclasses.replace(_config_of(path), dtype=dtype, param_dtype=dtype)
    params = model_folder.read_weights(path, config, _in_its_dtype(keep))
    return FoundModel(config, params, _tokenizer_of(path, config), _about_folder(path))


def describe_path(path: Path) -> ModelSpec:
    """Returns a model folder or a model file as a spec, without reading weights.

    Args:
      path: As ``read_path`` takes it.

    Returns:
      The spec. Its name is the path's last part, in letters that names have.

    Raises:
      ValueError: It is neither.
      FormatError: A file is damaged.
      OSError: Something is not there, or cannot be read.
    """
    version = _UNVERSIONED
    load_tokenizer = functools.partial(_any_tokenizer, path)
    if is_pretrained_folder(path):
        config, about = config_from_folder(path), _about_foreign(path)
        load_tokenizer = functools.partial(_foreign_tokenizer, path)
    elif path.is_dir():
        config, about = _config_of(path), _about_folder(path)
        if (path / model_folder.WEIGHTS).exists():
            steps = model_folder.read_metadata(path).get("step")
            version = version if steps is None else f"step {steps}"
    else:
        _check_exists(path)
        file = read_gguf(path)
        try:
            config = config_from_gguf(file)
        except ValueError as error:  # FormatError too, which stays one
            raise type(error)(f"{path}: {error}") from None
        about = _about_file(path, file.metadata)
    model = build(config)
    return ModelSpec(
        api_version=API_VERSION,
        name=_name_of(path),
        version=version,
        config=config,
        metadata=about,
        init=model.init,
        apply=model.apply,
        init_cache=model.init_cache,
        load_params=lambda: read_path(path, dtype=config.param_dtype).params,
        load_tokenizer=load_tokenizer,
    )


def stored_as(path: Path) -> dict[str, str]:
    """Returns how a model lies at a path that others wrote, without reading weights.

    Args:
      path: As ``describe_path`` takes it.

    Returns:
      ``family`` and ``dtype``, which can be several; nothing of a run's folder.
    """
    if path.is_dir():
        family = family_of_folder(path)
        return _told(family, stored_dtypes(path)) if family else {}
    file = read_gguf(path)
    kinds = sorted({tensor.kind for tensor in file.tensors.values()})
    return _told(str(file.metadata.get("general.architecture", "")), kinds)


def _told(family: str, dtypes: Sequence[str]) -> dict[str, str]:
    told = {"family": family, "dtype": ", ".join(dtypes)}
    return {key: value for key, value in told.items() if value}


def _in_its_dtype(keep: Keep) -> Keep:
    """Returns what keeps a parameter as ``keep`` does, in the config's dtype."""

    def kept(
        config: DecoderConfig, module: str, name: str, array: np.ndarray | jax.Array
    ) -> Any:
        wanted = aligned_empty(array.shape, jnp.dtype(config.param_dtype))
        with np.errstate(over="ignore"):  # what is too large becomes infinity
            wanted[...] = array
        return keep(config, module, name, wanted)

    return kept


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.suffix.lower() != ".gguf":
        raise ValueError(
            "path must be a model folder, as a training run's or Hugging Face's is, or "
            f"a .gguf file, got {str(path)!r}"
        )


def _config_of(folder: Path) -> DecoderConfig:
    if not (folder / model_folder.CONFIG).exists():
        raise ValueError(
            "path must be a model folder, as a training run's or Hugging Face's is, or "
            f"a .gguf file, got {str(folder)!r}, which has no {model_folder.CONFIG}"
        )
    return model_folder.read_config(folder)


def _tokenizer_of(folder: Path, config: DecoderConfig) -> AnyTokenizer | None:
    path = folder / model_folder.TOKENIZER
    if not path.exists():
        return None
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"{path} is of another model: it has {tokenizer.vocab_size} tokens, and "
            f"vocab_size is {config.vocab_size}"
        )
    return tokenizer


def _about_folder(folder: Path) -> ModelMetadata:
    return ModelMetadata(
        description=f"a decoder in {folder}",
        source=str(folder),
        capabilities=("logits", "cache", "pretrained"),
    )


def _any_tokenizer(path: Path) -> AnyTokenizer | None:
    return read_path(path).tokenizer


def _foreign_tokenizer(folder: Path) -> AnyTokenizer | None:
    vocab_size = config_from_folder(folder).vocab_size
    return tokenizer_from_folder(folder, vocab_size=vocab_size)


def _about_foreign(folder: Path) -> ModelMetadata:
    return ModelMetadata(
        description=f"a decoder of the family {family_of_folder(folder)} in {folder}",
        license=_license_of(folder / _CARD),
        source=str(folder),
        capabilities=("logits", "cache", "pretrained"),
    )


def _license_of(card: Path) -> str:
    """Returns what the first lines of a model's card say of its licence."""
    try:
        with open(card, encoding="utf-8", errors="replace") as file:
            head = file.read(_MOST_OF_CARD)
    except OSError:
        return ""
    front = head.split("\n---", 1)[0] if head.startswith("---") else ""
    found = re.search(r"^license:[ \t]*([\w.+-]{1,60})[ \t]*$", front, re.MULTILINE)
    return found[1] if found else ""


def _about_file(path: Path, about: dict[str, Any]) -> ModelMetadata:
    return ModelMetadata(
        description=str(about.get("general.name", path.stem)),
        license=str(about.get("general.license", "")),
        source=str(path),
        capabilities=("logits", "cache", "pretrained"),
    )


def _name_of(path: Path) -> str:
    last = path.resolve().name.lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last) or "model"
