"""What a model costs, from shapes alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from haiku_mqa.errors import PluginError
from haiku_mqa.model import Model
from haiku_mqa.quantization import quantize_params
from haiku_mqa.zoo import ModelSpec

_WEIGHT_DTYPES = ("float32", "bfloat16")
_CACHE_DTYPES = ("float32", "bfloat16", "int8")


def parameters(spec: ModelSpec | Model) -> dict[str, int]:
    """Counts a model's parameters by the part they belong to.

    A part is told by the names in a parameter's path; what has none of this
    package's names counts as ``other``.

    Args:
      spec: The model; its ``init`` is traced, not run.

    Returns:
      Part to count; ``total`` is their sum.

    Raises:
      PluginError: ``init`` failed.

    Example:
      >>> from haiku_mqa.zoo.entries import mqa_decoder
      >>> counts = parameters(mqa_decoder())
      >>> counts["embedding"], counts["attention"], counts["total"]
      (16384, 56160, 272608)
    """
    rng = jax.eval_shape(lambda: jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = _shapes_of(spec, "init", spec.init, rng, tokens)
    counts = dict.fromkeys(("embedding", "attention", "feed_forward", "norms"), 0)
    counts |= {"unembed": 0, "other": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        counts[_part(path)] += math.prod(leaf.shape)
    if not counts["other"]:
        del counts["other"]
    return {**counts, "total": sum(counts.values())}


def weight_bytes(spec: ModelSpec | Model) -> dict[str, int]:
    """Returns how many bytes a model's weights take, by dtype.

    Args:
      spec: The model; its ``init`` is traced, not run.

    Returns:
      dtype to bytes; only models of this package's parts tell of int8, what stays
      wider included.

    Raises:
      PluginError: ``init`` failed.

    Example:
      >>> from haiku_mqa.zoo.entries import mqa_decoder
      >>> weight_bytes(mqa_decoder())
      {'float32': 1090432, 'bfloat16': 545216, 'int8': 304256}
    """
    count = parameters(spec)["total"]
    found = {dtype: count * jnp.dtype(dtype).itemsize for dtype in _WEIGHT_DTYPES}
    if model := _own(spec):
        quantize = functools.partial(quantize_params, model)
        found["int8"] = _bytes(jax.eval_shape(quantize, model.param_shapes))
    return found


def cache_bytes(spec: ModelSpec | Model) -> dict[str, dict[str, int]]:
    """Returns how many bytes a row's cache takes, by form and dtype.

    Args:
      spec: The model; its ``init_cache`` is traced, not run.

    Returns:
      ``per_token``: by how many it grows for a token of room. Where layers have
      windows, ``per_token_with_rings``, and ``rings``, which are there from the
      start and do not grow. Each is dtype of keys and values to bytes, what is kept
      beside them included; only models of this package's parts tell of int8.

    Raises:
      PluginError: ``init_cache`` failed.

    Example:
      >>> from haiku_mqa.zoo.entries import mqa_decoder
      >>> cache_bytes(mqa_decoder())  # 6 layers, 2 heads of 8; a position
      {'per_token': {'float32': 392, 'bfloat16': 200, 'int8': 152}}
    """
    # What another's cache can be asked for beside a dtype is not known.
    ours = _own(spec)
    dtypes = _CACHE_DTYPES if ours else _CACHE_DTYPES[:2]
    # From one token of room beyond the widest window on, growth is even.
    windows = [w for w in ours.config.windows if w] if ours else []
    beyond = max(windows, default=0) + 1

    def bytes_of(length: int, dtype: str, **form: bool) -> int:
        def make() -> Any:
            return spec.init_cache(1, length, dtype=jnp.dtype(dtype), **form)

        return _bytes(_shapes_of(spec, "init_cache", make))

    def growth(dtype: str, **form: bool) -> int:
        longer = bytes_of(beyond + 1, dtype, **form)
        return longer - bytes_of(beyond, dtype, **form)

    found = {"per_token": {dtype: growth(dtype) for dtype in dtypes}}
    if windows:
        grows = {dtype: growth(dtype, ring=True) for dtype in dtypes}
        found["per_token_with_rings"] = grows
        found["rings"] = {
            dtype: bytes_of(beyond, dtype, ring=True)
            - bytes_of(beyond, dtype)
            + beyond * (found["per_token"][dtype] - grows[dtype])
            for dtype in dtypes
        }
    return found


def _own(spec: ModelSpec | Model) -> Model | None:
    """Returns the model, where it is made of this package's parts."""
    model = getattr(spec.init_cache, "__self__", None)
    return model if isinstance(model, Model) else None


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _shapes_of(
    spec: ModelSpec | Model, name: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # a plugin may fail in any way
        raise PluginError(
            f"model {getattr(spec, 'name', spec)!r}: {name} failed while its shapes "
            f"were computed: {type(error).__name__}: {error}"
        ) from error


def _part(path: tuple[Any, ...]) -> str:
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    *modules, _ = names
    if any(name.endswith("norm") for name in modules):
        return "norms"
    if "unembed" in modules:
        return "unembed"
    if any(name.endswith("embed") for name in modules):
        return "embedding"
    for part in ("attention", "feed_forward"):
        if part in modules:
            return part
    return "other"
