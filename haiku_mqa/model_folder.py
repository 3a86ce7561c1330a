"""A folder that holds a decoder: what it is, its weights, and the tokens it reads.

``config.json`` (the config's fields), ``model.safetensors`` (each parameter under its
module's path and its own name, ``decoder_lm/embed/embeddings``) and
``tokenizer.json``, as ``haiku_mqa.text`` writes it. A training run writes one, and
whatever takes a model's name takes the path of such a folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from haiku_mqa._files import write_whole
from haiku_mqa._keep import Keep
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Params, build

FORMAT = "haiku_mqa decoder 1"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
_FLOATING = ("F16", "BF16", "F32", "F64")  # the names that safetensors gives them


def is_model_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a folder that this module wrote a config to."""
    config = Path(path) / CONFIG
    try:
        return json.loads(config.read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_config(folder: str | os.PathLike[str], config: DecoderConfig) -> None:
    """Writes ``config.json``; a crash leaves it as it was, or whole.

    Args:
      folder: Which exists.
      config: Of the decoder.

    Raises:
      OSError: It cannot be written.
    """
    data = {"format": FORMAT, **config.to_dict()}
    write_whole(Path(folder) / CONFIG, (json.dumps(data, indent=2) + "\n").encode())


def read_config(folder: str | os.PathLike[str]) -> DecoderConfig:
    """Returns the config that ``write_config`` wrote.

    Args:
      folder: The model's.

    Returns:
      The config.

    Raises:
      FormatError: The file is damaged, or is another program's.
      OSError: It cannot be read.
    """
    path = Path(folder) / CONFIG
    try:
        return _config_of(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} is no decoder's config: {error}") from None


def _config_of(fields: Any) -> DecoderConfig:
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    return DecoderConfig.from_dict(fields)


def write_weights(
    folder: str | os.PathLike[str],
    params: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes ``model.safetensors``; a crash leaves it as it was, or whole.

    Args:
      folder: Which exists.
      params: Module path to parameter name to array, of any dtype.
      metadata: What else the file says of itself.

    Raises:
      OSError: It cannot be written.
    """
    tensors = {
        f"{module}/{name}": np.ascontiguousarray(leaf)
        for module, leaves in params.items()
        for name, leaf in leaves.items()
    }
    write_whole(Path(folder) / WEIGHTS, save(tensors, dict(metadata or {})))


def read_weights(
    folder: str | os.PathLike[str], config: DecoderConfig, keep: Keep | None = None
) -> Params:
    """Returns the weights that ``write_weights`` wrote, in the dtype they lie in.

    Args:
      folder: The model's.
      config: Whose shapes they must have.
      keep: What becomes of each; they stay NumPy arrays if left out.

    Returns:
      Module path to parameter name to what was kept.

    Raises:
      FormatError: The file is damaged, or its tensors are not the config's; names
        those that are missing, too many, or of another shape.
      OSError: It cannot be read.
    """
    path = Path(folder) / WEIGHTS
    wanted = {
        f"{module}/{name}": (module, name, tuple(leaf.shape))
        for module, leaves in build(config).param_shapes.items()
        for name, leaf in leaves.items()
    }
    _check_tensors(path, {name: shape for name, (_, _, shape) in wanted.items()})
    params: dict[str, dict[str, Any]] = {}
    for name, (module, leaf, _) in wanted.items():
        with _opened(path) as file:  # anew: what was read of it stays in memory
            tensor = file.get_tensor(name)
        kept = tensor if keep is None else keep(config, module, leaf, tensor)
        params.setdefault(module, {})[leaf] = kept
    return params


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Returns what ``model.safetensors`` says of itself, without reading weights.

    Args:
      folder: The model's.

    Returns:
      The metadata that ``write_weights`` was given.

    Raises:
      FormatError: The file is damaged.
      OSError: It cannot be read.
    """
    path = Path(folder) / WEIGHTS
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.parent.is_dir() and not path.exists():
        why = "there are no weights; a training run writes some once it is evaluated"
        raise FileNotFoundError(errno.ENOENT, why, str(path))
    with open(path, "rb"):  # safetensors' own error names no file
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise FormatError(
            f"{path} is no safetensors file, or damaged: {error}"
        ) from None


def _check_tensors(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
    with _opened(path) as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
        dtypes = {name: tensor.get_dtype() for name, tensor in found.items()}
    missing = [f"{name} is missing" for name in wanted if name not in found]
    surplus = [f"{name} is no parameter" for name in found if name not in wanted]
    misshapen = [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and shapes[name] != shape
    ]
    # Whole numbers of the right shape would be taken for weights.
    others = [
        f"{name} is of {dtype}, not of floating point"
        for name, dtype in dtypes.items()
        if name in wanted and dtype not in _FLOATING
    ]
    faults = missing + surplus + misshapen + others
    if faults:
        raise FormatError(f"{path} is not of its config: {'; '.join(faults)}")
