"""From a name or a file to a model that can be used."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp

from haiku_mqa._keep import Keep, on_device
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.model import Model, Params, build
from haiku_mqa.quantization import Quantization, check_quantization, quantize_param
from haiku_mqa.text import AnyTokenizer
from haiku_mqa.zoo.discovery import is_path, load
from haiku_mqa.zoo.hub import folder_of, is_hub_name
from haiku_mqa.zoo.params_loader import ParamsLoader
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
      >>> import jax
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
    progress: bool = True,
) -> LoadedModel:
    """Loads a pretrained model.

    Args:
      source: A name of the zoo, whose weights are fetched if need be; or the path of
        a folder that holds a model, as a training run's or Hugging Face's does, or of
        a ``.gguf`` file; or ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``, which the
        Hugging Face Hub has (needs the extra ``hub``).
      dtype: What its parameters are stored in and computed with.
      quantize: ``"int8"`` stores its matrices in a byte a number, as
        ``quantize_params`` does: for inference alone.
      progress: Whether a download shows a bar, where stderr is a terminal.

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
    keep = on_device if quantize is None else quantize_param
    text = os.fspath(source)
    if is_hub_name(text):
        text = str(folder_of(text, progress=progress))
    if is_path(text):
        read = read_path(Path(text), dtype=dtype, keep=keep)
        model = build(read.config)
        return LoadedModel(model, read.params, read.tokenizer, read.metadata)
    return _load_name(text, dtype, keep, progress)


def _load_name(name: str, dtype: DType, keep: Keep, progress: bool) -> LoadedModel:
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
    if isinstance(spec.load_params, ParamsLoader):
        params = spec.load_params.read(dtype, keep, progress)
    else:
        params = _kept(config, spec.load_params(), keep)
    load_tokenizer = cast("Callable[[], Any] | None", spec.load_tokenizer)
    tokenizer = load_tokenizer() if load_tokenizer else None
    return LoadedModel(build(config), params, tokenizer, spec.metadata)


def _kept(config: DecoderConfig, params: Params, keep: Keep) -> Params:
    return {
        module: {
            name: keep(config, module, name, jnp.asarray(leaf, config.param_dtype))
            for name, leaf in leaves.items()
        }
        for module, leaves in params.items()
    }
