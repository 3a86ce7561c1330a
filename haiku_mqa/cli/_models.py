"""How a verb gets a model, and how jax is made ready for a short life."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from haiku_mqa._compiling import prepare_jax
from haiku_mqa.cli._screen import say
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import unknown_name
from haiku_mqa.zoo.discovery import discover, is_path
from haiku_mqa.zoo.hub import folder_of, is_hub_name, parse_hub_name

if TYPE_CHECKING:
    from haiku_mqa.quantization import Quantization
    from haiku_mqa.zoo.loading import LoadedModel


def prepare_training() -> None:
    """Makes jax ready for many steps, each of which frees what the next one needs."""
    prepare_jax()
    from haiku_mqa.training import keep_freed_memory

    keep_freed_memory()


def load_model(
    source: str, *, dtype: DType, quantize: Quantization | None = None
) -> LoadedModel:
    """Loads a model with weights.

    Args:
      source: A name of the zoo, a file or a folder.
      dtype: What its weights are held in and computed with.
      quantize: What its matrices are held in instead.

    Raises:
      ValueError: There is no such model; see ``haiku_mqa.load_pretrained``.
    """
    check_name(source)
    prepare_jax()
    from haiku_mqa.zoo.loading import load_pretrained

    source = fetched(source)
    say(f"loading {source}")
    return load_pretrained(source, dtype=dtype, quantize=quantize)


def over_mesh(loaded: LoadedModel, sizes: str | None) -> LoadedModel:
    """Returns a model over the devices of a mesh, or as it is.

    Args:
      loaded: The model.
      sizes: Of the mesh's axes; ``None`` for one device.

    Raises:
      ValueError: There is no such mesh, or it does not divide the model.
    """
    if sizes is None:
        return loaded
    from haiku_mqa.sharding import shard

    model = shard(loaded.model, sizes)
    return dataclasses.replace(loaded, model=model, params=model.put(loaded.params))


def load_or_draw(source: str, *, dtype: DType, seed: int) -> LoadedModel:
    """Loads a model, or draws weights for one of the zoo's that has none.

    Args:
      source: A name of the zoo, a file or a folder.
      dtype: What its weights are held in and computed with.
      seed: Of drawn weights.

    Raises:
      ValueError: There is no such model, or it is not made of this package's parts.
    """
    if is_path(source) or is_hub_name(source):
        return load_model(source, dtype=dtype)
    check_name(source)
    prepare_jax()
    import jax

    from haiku_mqa.model import build
    from haiku_mqa.zoo import load
    from haiku_mqa.zoo.loading import LoadedModel

    spec = load(source)
    if spec.load_params is not None or not isinstance(spec.config, DecoderConfig):
        return load_model(source, dtype=dtype)
    say(f"{source} has no trained weights: drawing some, with seed {seed}")
    model = build(dataclasses.replace(spec.config, dtype=dtype, param_dtype=dtype))
    params = model.init(jax.random.key(seed))
    return LoadedModel(model, params, None, spec.metadata)


def fetched(source: str) -> str:
    """Returns a model's source, the folder of what the hub has.

    Args:
      source: A name of the zoo, a name on the hub, a file or a folder.

    Raises:
      ValueError: It begins as a name on the hub does, and is none.
      FetchError: It could not be fetched.

    Example:
      >>> fetched("smollm2-135m")
      'smollm2-135m'
    """
    if not is_hub_name(source):
        return source
    say(f"fetching {source}")
    return str(folder_of(source))


def check_name(source: str) -> None:
    """Raises ``ValueError`` for a name that no model has, before jax is imported.

    Args:
      source: A name of the zoo; what is plainly a file or a folder passes.

    Raises:
      ValueError: No installed distribution declares it; names the nearest.

    Example:
      >>> check_name("smollm2.gguf")
    """
    if is_hub_name(source):
        parse_hub_name(source)
    if is_path(source) or is_hub_name(source):
        return
    entries = discover()
    if source not in entries:
        raise unknown_name("model", source, entries)
