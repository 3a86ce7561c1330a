"""Folders as Hugging Face's libraries write them: a config, weights, a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa._files import as_path
from haiku_mqa._keep import Keep, aligned_empty, on_device
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Model, Params, build
from haiku_mqa.pretrained._matching import matched
from haiku_mqa.pretrained._tensor_files import (
    StoredTensor,
    dtype_name,
    read_json,
    stored_tensors,
)
from haiku_mqa.pretrained.families import Family, Tensor, family_named

CONFIG = "config.json"
# Numbers that are copied at a time: few enough to stay in a core's cache.
_BLOCK = 2**18


def is_pretrained_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a folder whose config names a ``model_type``.

    Args:
      path: Any path.
    """
    try:
        return "model_type" in read_json(Path(path) / CONFIG)
    except (OSError, ValueError):
        return False


def family_of_folder(path: str | os.PathLike[str]) -> str | None:
    """Returns the ``model_type`` of a folder, ``None`` where it is another's.

    Args:
      path: Any path.

    Example:
      >>> family_of_folder("nowhere") is None
      True
    """
    try:
        found = read_json(Path(path) / CONFIG).get("model_type")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def stored_dtypes(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns which dtypes a folder's weights lie in, without reading them.

    Args:
      folder: The model's.

    Returns:
      Names, such as ``"bfloat16"``, in order; none where there are no weights.

    Raises:
      FormatError: A file is damaged.

    Example:
      >>> stored_dtypes("nowhere")
      ()
    """
    try:
        stored = stored_tensors(Path(folder))
    except OSError:
        return ()
    return tuple(sorted({dtype_name(tensor) for tensor in stored.values()}))


def config_from_folder(
    folder: str | os.PathLike[str], *, dtype: DType = "float32"
) -> DecoderConfig:
    """Returns the config of a Hugging Face folder, without reading weights.

    Args:
      folder: Which holds a ``config.json``.
      dtype: What the decoder computes in, and what its parameters become.

    Returns:
      The config.

    Raises:
      ValueError: The family, a key or its value is not supported; names it.
      FormatError: The file is damaged, a key is missing, or its value cannot be.
      OSError: It cannot be read.

    Example:
      >>> import json, pathlib, tempfile
      >>> keys = {"model_type": "llama", "vocab_size": 256, "hidden_size": 64,
      ...     "num_hidden_layers": 2, "num_attention_heads": 8,
      ...     "num_key_value_heads": 1, "intermediate_size": 256}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "config.json"
      ...     _ = path.write_text(json.dumps(keys))
      ...     config_from_folder(folder).num_kv_heads
      1
    """
    return _read_config(as_path("folder", folder), dtype)[1]


def from_pretrained(
    folder: str | os.PathLike[str],
    *,
    dtype: DType = "float32",
    num_layers: int | None = None,
    keep: Keep = on_device,
) -> tuple[Model, Params]:
    """Reads a folder as Hugging Face's libraries write it.

    Weights are mapped and copied one tensor at a time into arrays of their final
    dtype, the largest first, so that little more memory is needed than for the
    result.

    Args:
      folder: Which holds ``config.json`` and ``model.safetensors``, or several such
        files with an index.
      dtype: What the decoder computes in, and what its parameters become.
      num_layers: How many of its layers, from the first; all if ``None``.
      keep: What becomes of each parameter; it is put on the default device if left
        out.

    Returns:
      The model and its parameters.

    Raises:
      ValueError: The family, a key of the config or its value is not supported, or
        there are not so many layers.
      FormatError: A file is damaged; tensors are missing, superfluous or of the
        wrong shape (all are listed); or one holds a number that is not finite, or
        would not be in ``dtype``.
      OSError: A file is not there, or cannot be read.

    Example:
      >>> import jax, tempfile
      >>> from haiku_mqa.pretrained import save_pretrained
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> params = build(config).init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_pretrained(folder, config, params, family="llama")
      ...     model, again = from_pretrained(folder, num_layers=1)
      >>> model.config.num_layers
      1
    """
    folder = as_path("folder", folder)
    family, config = _read_config(folder, dtype)
    wanted = _first_layers(config, num_layers)
    stored = stored_tensors(folder)
    try:
        tensors = matched(family, config, stored)
    except FormatError as error:
        raise FormatError(f"{folder}: {error}") from None
    model = build(wanted)
    params: dict[str, dict[str, Any]] = {
        module: dict.fromkeys(leaves) for module, leaves in model.param_shapes.items()
    }
    parts = [(tensor, tensors[tensor.name]) for tensor, _ in family.tensors_of(wanted)]
    # The room that a large one takes beside its copy is not yet taken by the others.
    for tensor, place in sorted(parts, key=lambda part: -np.prod(part[1].shape)):
        for path, array in _read_tensor(tensor, place, model):
            module, _, leaf = f"decoder_lm/{path}".rpartition("/")
            params[module][leaf] = keep(wanted, module, leaf, array)
    return model, params


def _read_config(folder: Path, dtype: DType) -> tuple[Family, DecoderConfig]:
    path = folder / CONFIG
    keys = read_json(path)
    try:
        family = family_named(keys.get("model_type"))
        return family, family.config_of(keys, dtype)
    except ValueError as error:  # FormatError too, which stays one
        raise type(error)(f"{path}: {error}") from None


def _first_layers(config: DecoderConfig, num_layers: int | None) -> DecoderConfig:
    if num_layers is None:
        return config
    count = whole_number("num_layers", num_layers, most=config.num_layers)
    return config.first_layers(count)


def _read_tensor(
    tensor: Tensor, stored: StoredTensor, model: Model
) -> Iterator[tuple[str, np.ndarray]]:
    dtype = jnp.dtype(model.config.param_dtype)
    arrays = [aligned_empty(shape, dtype) for shape in _shapes(tensor, model)]
    for theirs, ours in tensor.pairs(model.config, stored.mapped(), arrays):
        _copy(ours, theirs, f"{stored.path}: tensor {stored.name}")
    yield from zip(tensor.ours, arrays, strict=True)


def _shapes(tensor: Tensor, model: Model) -> Iterator[tuple[int, ...]]:
    for path in tensor.ours:
        module, _, leaf = f"decoder_lm/{path}".rpartition("/")
        yield tuple(model.param_shapes[module][leaf].shape)


def _copy(target: np.ndarray, source: np.ndarray, what: str) -> None:
    """Copies into another dtype and order, by blocks, and looks at each number."""
    step = max(1, _BLOCK // max(1, source[:1].size))
    for start in range(0, len(source), step):
        block = source[start : start + step]
        if not np.isfinite(block).all():
            raise FormatError(f"{what} holds NaN or infinity")
        with np.errstate(over="ignore"):  # said below, with the tensor's name
            cast = block.astype(target.dtype, copy=False)
        if cast.dtype != block.dtype and not np.isfinite(cast).all():
            raise FormatError(f"{what} holds numbers too large for {target.dtype}")
        target[start : start + step] = cast
