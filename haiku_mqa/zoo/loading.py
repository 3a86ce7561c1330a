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
from haiku_mqa.quantization import Quantization, check_quantization, quantize_params
from haiku_mqa.text import AnyTokenizer
from haiku_mqa.zoo.discovery import is_path, load
from haiku_mqa.zoo.paths import read_path
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
    tokenizer: AnyTokenizer | None
    metadata: ModelMetadata


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    dtype: DType = "float32",
    quantize: Quantization | None = None,
) -> LoadedModel:
    """Loads a pretrained model.

    Args:
      source: A name of the zoo, whose weights are fetched if need be; or the path of
        a folder that holds a model, as a training run's does, or of a ``.gguf`` file.
      dtype: What its parameters are stored in and computed with.
      quantize: ``"int8"`` stores its matrices in a byte a number, as
        ``quantize_params`` does: for inference alone.

    Returns:
      The model, its parameters, its tokenizer and its metadata.

    Raises:
      ValueError: There is no such name, the model has no weights, or it is of a kind
        that cannot be read; or there is no such quantization.
      FormatError: A file is damaged, or those of a folder do not belong together.
      OSError: There is no such file, or it cannot be read.
      FetchError: The weights could not be fetched.
      PluginError: The zoo's entry could not be used.

    Example:
      >>> load_pretrained("mqa-decoder")
      Traceback (most recent call last):
      ValueError: model 'mqa-decoder' has no pretrained weights: \
draw some with haiku_mqa.zoo.load('mqa-decoder').init
    """
    if quantize is not None:
        check_quantization(quantize)
    text = os.fspath(source)
    loaded = _load_path(Path(text), dtype) if is_path(text) else _load_name(text, dtype)
    if quantize is None:
        return loaded
    params = quantize_params(loaded.model, loaded.params, quantize)
    return dataclasses.replace(loaded, params=params)


def _load_path(path: Path, dtype: DType) -> LoadedModel:
    read = read_path(path, dtype=dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), read.params)
    return LoadedModel(build(read.config), params, read.tokenizer, read.metadata)


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
