"""From a name or a file to a model that can be used."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.model import Model, Params, build
from haiku_mqa.pretrained import Tokenizer, read_pretrained
from haiku_mqa.zoo.discovery import load
from haiku_mqa.zoo.spec import ModelMetadata


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A pretrained model, ready for use.

    Attributes:
      model: The init/apply pair.
      params: Its weights, on the default device.
      tokenizer: Text to token ids and back; ``None`` where the source has none.
      metadata: Licence, source and what else is known of it.

    Example:
      >>> from haiku_mqa.zoo import load
      >>> spec = load("mqa-decoder")
      >>> loaded = LoadedModel(build(spec.config), spec.init(jax.random.key(0)),
      ...     tokenizer=None, metadata=spec.metadata)
      >>> loaded.metadata.license
      'MIT'
    """

    model: Model
    params: Params
    tokenizer: Tokenizer | None
    metadata: ModelMetadata


def load_pretrained(
    source: str | os.PathLike[str], *, dtype: DType = "float32"
) -> LoadedModel:
    """Loads a pretrained model.

    Args:
      source: A name of the zoo, whose weights are fetched if need be, or the path of
        a ``.gguf`` file.
      dtype: What its parameters are stored in and computed with.

    Returns:
      The model, its parameters, its tokenizer and its metadata.

    Raises:
      ValueError: There is no such name or file, the model has no weights, or it is
        of a kind that cannot be read.
      FormatError: The file is damaged.
      FetchError: The weights could not be fetched.
      PluginError: The zoo's entry could not be used.

    Example:
      >>> load_pretrained("mqa-decoder")
      Traceback (most recent call last):
      ValueError: model 'mqa-decoder' has no pretrained weights: \
draw some with haiku_mqa.zoo.load('mqa-decoder').init
    """
    text = os.fspath(source)
    if text.endswith(".gguf") or os.sep in text or Path(text).exists():
        return _load_file(Path(text), dtype)
    return _load_name(text, dtype)


def _load_file(path: Path, dtype: DType) -> LoadedModel:
    read = read_pretrained(path, dtype=dtype)
    about = read.metadata
    metadata = ModelMetadata(
        description=str(about.get("general.name", path.stem)),
        license=str(about.get("general.license", "")),
        source=str(path),
        capabilities=("logits", "cache", "pretrained"),
    )
    params = jax.device_put(read.params)
    return LoadedModel(build(read.config), params, read.tokenizer, metadata)


def _load_name(name: str, dtype: DType) -> LoadedModel:
    spec = load(name)
    if spec.load_params is None:
        raise ValueError(
            f"model {name!r} has no pretrained weights: draw some with "
            f"haiku_mqa.zoo.load({name!r}).init"
        )
    if not isinstance(spec.config, DecoderConfig):
        raise ValueError(
            f"model {name!r} is not made of this package's parts (its config is a "
            f"{type(spec.config).__name__}); use its own init and apply, from "
            f"haiku_mqa.zoo.load({name!r})"
        )
    config = dataclasses.replace(spec.config, dtype=dtype, param_dtype=dtype)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), spec.load_params())
    load_tokenizer = cast("Callable[[], Any] | None", spec.load_tokenizer)
    tokenizer = load_tokenizer() if load_tokenizer else None
    return LoadedModel(build(config), params, tokenizer, spec.metadata)
