"""A cache as a file, so that what was read once need not be read again.

One safetensors file: each array under its path in the cache
(``layers/0/keys``, ``lengths``), and in the header whose cache it is. It holds no
parameters, and is of use only with those that it was read with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from haiku_mqa._arguments import differences
from haiku_mqa._files import write_whole
from haiku_mqa.cache import Int8Array, KVCache
from haiku_mqa.checks import check_params
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Model, Params

FORMAT = "haiku_mqa cache 1"
_EXTRA = "extra/"


def save_cache(
    path: str | os.PathLike[str],
    cache: KVCache,
    model: Model,
    params: Params,
    extra: Mapping[str, np.ndarray | jax.Array] | None = None,
) -> None:
    """Writes a cache; a crash leaves the file as it was, or whole.

    Args:
      path: Of the file; what is there is replaced.
      cache: As the model made it.
      model: Whose cache it is.
      params: That it was made with.
      extra: Arrays to keep beside it, by name.

    Raises:
      ValueError: The parameters or the cache do not fit the model.
      OSError: It cannot be written.

    Example:
      >>> import tempfile
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> cache = model.apply(
      ...     params, None, jnp.array([[1, 2, 3]]), cache=model.init_cache(1, 8)).cache
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_cache(f"{folder}/past.safetensors", cache, model, params)
      ...     loaded = load_cache(f"{folder}/past.safetensors", model, params)
      >>> loaded.lengths.tolist()
      [3]
    """
    check_params(params, model.param_shapes)
    form = _form_of(cache)
    arrays = _named(cache)
    faults = _faults(arrays, _named(_empty(model, form)))
    if faults:
        raise ValueError(f"cache is not of this model: {'; '.join(faults)}")
    arrays |= {f"{_EXTRA}{name}": array for name, array in (extra or {}).items()}
    header = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "config_digest": _config_digest(model),
        "params_digest": _params_digest(params),
        "form": json.dumps(form),
    }
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_whole(path, save(tensors, header))


def load_cache(path: str | os.PathLike[str], model: Model, params: Params) -> KVCache:
    """Returns the cache that ``save_cache`` wrote.

    Args:
      path: Of the file.
      model: Whose cache it must be.
      params: That it must have been made with.

    Returns:
      The cache, bit for bit.

    Raises:
      FormatError: The file is damaged, or is no cache.
      ValueError: It is the cache of another model, or of other parameters; names
        the fields of the config that differ.
      OSError: It cannot be read.
    """
    return read_cache_file(path, model, params)[0]


def read_cache_file(
    path: str | os.PathLike[str], model: Model, params: Params
) -> tuple[KVCache, dict[str, np.ndarray]]:
    """Returns the cache that ``save_cache`` wrote, and what it was given beside it.

    Args:
      path: As ``load_cache``; likewise the rest.
      model: See there.
      params: See there.

    Returns:
      The cache, and the arrays of ``extra``.

    Raises:
      FormatError: The file is damaged, or is no cache.
      ValueError: It is the cache of another model, or of other parameters.
      OSError: It cannot be read.
    """
    check_params(params, model.param_shapes)
    header, arrays = _read(Path(path))
    _check_owner(path, header, model, params)
    try:
        form = _checked_form(json.loads(header["form"]))
        wanted = _empty(model, form)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path} does not tell what cache it holds: {error}"
        ) from None
    extra = {
        name.removeprefix(_EXTRA): array
        for name, array in arrays.items()
        if name.startswith(_EXTRA)
    }
    stored = {name: a for name, a in arrays.items() if not name.startswith(_EXTRA)}
    faults = _faults(stored, _named(wanted))
    if not faults and (stored["lengths"] < 0).any():
        faults = [f"lengths has {stored['lengths'].min()}, below zero"]
    if faults:
        raise FormatError(f"{path} is no whole cache: {'; '.join(faults)}")
    leaves = [jnp.asarray(stored[name]) for name in _named(wanted)]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves), extra


def _form_of(cache: KVCache) -> dict[str, Any]:
    """Returns what tells the shapes of a cache, beside the config."""
    first = cache.layers[0].keys
    return {
        "batch_size": cache.batch_size,
        "max_length": cache.capacity,
        "dtype": "int8" if isinstance(first, Int8Array) else first.dtype.name,
        "rings": [layer.window is not None for layer in cache.layers],
    }


def _checked_form(form: Any) -> dict[str, Any]:
    fields = {"batch_size": int, "max_length": int, "dtype": str, "rings": list}
    if not isinstance(form, dict) or set(form) != set(fields):
        raise ValueError(f"form must have {', '.join(fields)}, got {form!r}")
    for name, kind in fields.items():
        if type(form[name]) is not kind:
            raise ValueError(f"{name} must be a {kind.__name__}, got {form[name]!r}")
    return form


def _empty(model: Model, form: dict[str, Any]) -> KVCache:
    """Returns the shapes of a cache of a form."""
    rows, length = form["batch_size"], form["max_length"]
    dtype, rings = form["dtype"], form["rings"]
    whole = jax.eval_shape(lambda: model.init_cache(rows, length, dtype))
    ringed = jax.eval_shape(lambda: model.init_cache(rows, length, dtype, ring=True))
    layers = [
        short if is_ring else long
        for long, short, is_ring in zip(whole.layers, ringed.layers, rings, strict=True)
    ]
    return dataclasses.replace(whole, layers=tuple(layers))


def _named(cache: KVCache) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(cache)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _faults(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    surplus = [f"{name} is none of its arrays" for name in found if name not in wanted]
    others = [
        f"{name} is {found[name].dtype} {list(found[name].shape)}, not "
        f"{array.dtype} {list(array.shape)}"
        for name, array in wanted.items()
        if name in found
        and (found[name].shape, found[name].dtype) != (array.shape, array.dtype)
    ]
    return [*missing, *surplus, *others][:8]


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with open(path, "rb"):  # safetensors' own error names no file
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            header = dict(file.metadata() or {})
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise FormatError(
            f"{path} is no safetensors file, or damaged: {error}"
        ) from None
    if header.get("format") != FORMAT:
        raise FormatError(
            f"{path} is no cache: format must be {FORMAT!r}, got "
            f"{header.get('format')!r}"
        )
    return header, arrays


def _check_owner(
    path: str | os.PathLike[str], header: dict[str, str], model: Model, params: Params
) -> None:
    if header.get("config_digest") != _config_digest(model):
        raise ValueError(
            f"{path} is the cache of another model: {_difference(header, model)}"
        )
    if header.get("params_digest") != _params_digest(params):
        raise ValueError(
            f"{path} is the cache of other parameters: those given have the digest "
            f"{_params_digest(params)}, it was made with "
            f"{header.get('params_digest')}"
        )


def _difference(header: dict[str, str], model: Model) -> str:
    try:
        theirs = dict(json.loads(header["config"]))
    except (KeyError, TypeError, ValueError):
        return "it does not tell its config"
    ours = json.loads(json.dumps(model.config.to_dict()))
    told = differences(theirs, ours)
    return told or "its config's digest is of another config"


def _config_digest(model: Model) -> str:
    fields = json.dumps(model.config.to_dict(), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:16]


def _params_digest(params: Params) -> str:
    digest = hashlib.sha256()
    for module in sorted(params):
        for name in sorted(params[module]):
            # A quantized one has more than one array.
            for array in jax.tree.leaves(params[module][name]):
                leaf = np.ascontiguousarray(array)
                digest.update(f"{module}/{name} {leaf.dtype} {leaf.shape}\n".encode())
                digest.update(leaf.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
