"""Adapters as the library peft writes and reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import is_number
from haiku_mqa._files import as_path, write_whole
from haiku_mqa.checks import check_params
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.lora import ATTENTION, FEED_FORWARD, AdaptedModel, LoRA
from haiku_mqa.model import Model, Params
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.pretrained._tensor_files import (
    Outline,
    StoredTensor,
    read_json,
    tensors_in,
    write_tensors,
)
from haiku_mqa.pretrained.families import family_named
from haiku_mqa.pretrained.families._layouts import stacked

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BEFORE = "base_model.model."
_MOST_RANK = 2**16
# Keys that ask for another kind of adapter, and the values by which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "alpha_pattern": ({}, None),
    "bias": ("none",),
    "exclude_modules": (None,),
    "fan_in_fan_out": (False,),
    "layer_replication": (None,),
    "layers_to_transform": (None,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_dora": (False,),
    "use_rslora": (False,),
}


def save_adapters(
    folder: str | os.PathLike[str], model: AdaptedModel, params: Params, *, family: str
) -> None:
    """Writes a model's adapters as peft reads them.

    Args:
      folder: Is made where it is not there.
      model: The adapted model.
      params: Its parameters; those that are no adapters are not written.
      family: The ``model_type`` under which peft will find the matrices.

    Raises:
      ValueError: There is no such family, it holds an adapted matrix together with
        another one, or the parameters are not the model's.
      OSError: A file cannot be written.

    Example:
      >>> import jax, tempfile
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16)
      >>> model = AdaptedModel(config, LoRA(rank=2))
      >>> params = model.init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_adapters(folder, model, params, family="llama")
      ...     again, _ = load_adapters(folder, model.plain, params, family="llama")
      >>> again == model
      True
    """
    check_params(params, model.param_shapes)
    folder = as_path("folder", folder)
    arrays: dict[str, np.ndarray] = {}
    names = _names(family, model.config, model.lora.targets)
    for path, name in names.items():
        adapter = params[f"{path}/lora"]
        arrays[f"{name}.lora_A.weight"] = np.asarray(adapter["a"]).T
        arrays[f"{name}.lora_B.weight"] = np.asarray(adapter["b"]).T
    keys = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in names.values()}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    outlines = {name: Outline(a.shape, a.dtype) for name, a in arrays.items()}
    write_tensors(folder / WEIGHTS, outlines, arrays.values())
    write_whole(folder / CONFIG, (json.dumps(keys, indent=2) + "\n").encode())


def load_adapters(
    folder: str | os.PathLike[str], model: Model, params: Params, *, family: str
) -> tuple[AdaptedModel, dict[str, Any]]:
    """Reads adapters that peft wrote.

    Args:
      folder: Which holds ``adapter_config.json`` and ``adapter_model.safetensors``.
      model: The model that they are for.
      params: Its parameters, which are not copied; adapters among them are left out.
      family: The ``model_type`` under which peft found the matrices.

    Returns:
      The adapted model, and parameters with the adapters, in float32.

    Raises:
      ValueError: There is no such family, or the config asks for what is not
        supported; the key is named.
      FormatError: A file is damaged; tensors are missing, superfluous or of the wrong
        shape; or one holds a number that is not finite.
      OSError: A file is not there, or cannot be read.
    """
    folder = as_path("folder", folder)
    rank, alpha = _sizes(folder / CONFIG)
    stored = tensors_in(folder / WEIGHTS)
    everywhere = (*ATTENTION, *FEED_FORWARD)
    names = _names(family, model.config, everywhere, skips_fused=True)
    found = {
        path: name for path, name in names.items() if f"{name}.lora_A.weight" in stored
    }
    targets = {path.rpartition("/")[2] for path in found}
    if not targets:
        raise FormatError(f"{folder / WEIGHTS}: no tensor is an adapter of this model")
    lora = LoRA(
        rank=rank, alpha=alpha, targets=tuple(t for t in everywhere if t in targets)
    )
    adapted = AdaptedModel(model.config, lora)
    wanted = _names(family, model.config, lora.targets)
    adapters = _adapters(folder / WEIGHTS, stored, wanted, adapted)
    own = {
        path: leaves for path, leaves in params.items() if path in model.param_shapes
    }
    check_params(own, model.param_shapes)
    return adapted, {**own, **adapters}


def _sizes(path: Path) -> tuple[int, float]:
    keys = read_json(path)
    kind = keys.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type must be 'LORA', got {in_one_line(kind)}")
    for name, values in _NEUTRAL.items():
        if name in keys and keys[name] not in values:
            raise ValueError(
                f"{path}: {name} must be {values[0]!r}, got {in_one_line(keys[name])}: "
                "anything else is not supported"
            )
    rank, alpha = keys.get("r"), keys.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= _MOST_RANK:
        raise FormatError(
            f"{path}: r must be a whole number from 1 to {_MOST_RANK}, got "
            f"{in_one_line(rank)}"
        )
    if not is_number(alpha) or not 0 < alpha < float("inf"):
        raise FormatError(
            f"{path}: lora_alpha must be a number > 0, got {in_one_line(alpha)}"
        )
    return rank, float(alpha)


def _names(
    family: str,
    config: DecoderConfig,
    targets: tuple[str, ...],
    *,
    skips_fused: bool = False,
) -> dict[str, str]:
    """Returns our path of each target, and what peft calls its module."""
    names: dict[str, str] = {}
    for tensor, _ in family_named(family).tensors_of(config):
        paths = [path.removesuffix("/w") for path in tensor.ours if path.endswith("/w")]
        hit = [path for path in paths if path.rpartition("/")[2] in targets]
        if not hit:
            continue
        if len(paths) == 1 and tensor.layout is stacked and not tensor.as_ours:
            name = tensor.name.removesuffix(".weight")
            names[f"decoder_lm/{hit[0]}"] = _BEFORE + name
        elif not skips_fused:
            raise ValueError(
                f"family {family!r} holds {hit[0]} in tensor {tensor.name} with others "
                "or in another order: an adapter of it alone cannot be written"
            )
    return names


def _adapters(
    path: Path,
    stored: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    adapted: AdaptedModel,
) -> dict[str, Any]:
    shapes = adapted.param_shapes
    wanted = {
        f"{name}.lora_{leaf.upper()}.weight": shapes[f"{ours}/lora"][leaf].shape[::-1]
        for ours, name in names.items()
        for leaf in "ab"
    }
    faults = list(_faults(stored, wanted))
    if faults:
        raise FormatError(f"{path}: {'; '.join(faults)}")
    return {
        f"{ours}/lora": {
            leaf: _array(path, stored[f"{name}.lora_{leaf.upper()}.weight"])
            for leaf in "ab"
        }
        for ours, name in names.items()
    }


def _faults(
    stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    for name in sorted(wanted.keys() - stored.keys()):
        yield f"{name} is missing"
    for name in sorted(stored.keys() - wanted.keys()):
        yield f"{in_one_line(name)} is unknown"
    for name in sorted(stored.keys() & wanted.keys()):
        if stored[name].shape != wanted[name]:
            yield f"{name} is {list(stored[name].shape)} and not {list(wanted[name])}"


def _array(path: Path, tensor: StoredTensor) -> Any:
    array = np.asarray(tensor.mapped(), np.float32)
    if not np.isfinite(array).all():
        raise FormatError(f"{path}: tensor {tensor.name} holds NaN or infinity")
    return jnp.asarray(array.T)
