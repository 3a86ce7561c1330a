"""What a model costs, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from haiku_mqa.errors import PluginError
from haiku_mqa.model import Model
from haiku_mqa.zoo import ModelSpec

_WEIGHT_DTYPES = ("float32", "bfloat16", "int8")
_CACHE_DTYPES = ("float32", "bfloat16")


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


def weight_bytes(count: int) -> dict[str, int]:
    """Returns how many bytes so many weights take, by dtype.

    Args:
      count: How many weights.

    Returns:
      dtype to bytes. An int8 weight takes one; its channel's scale is not counted.

    Example:
      >>> weight_bytes(1000)
      {'float32': 4000, 'bfloat16': 2000, 'int8': 1000}
    """
    return {dtype: count * jnp.dtype(dtype).itemsize for dtype in _WEIGHT_DTYPES}


def cache_bytes_per_token(spec: ModelSpec | Model) -> dict[str, int]:
    """Returns by how many bytes a cache grows for a token of room, by dtype.

    Args:
      spec: The model; its ``init_cache`` is traced, not run.

    Returns:
      dtype of keys and values to bytes, what is kept beside them included.

    Raises:
      PluginError: ``init_cache`` failed.

    Example:
      >>> from haiku_mqa.zoo.entries import mqa_decoder
      >>> cache_bytes_per_token(mqa_decoder())  # 6 layers, 2 heads of 8; a position
      {'float32': 392, 'bfloat16': 200}
    """

    def bytes_of(length: int, dtype: str) -> int:
        def make() -> Any:
            return spec.init_cache(1, length, dtype=jnp.dtype(dtype))

        tree = _shapes_of(spec, "init_cache", make)
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    return {dtype: bytes_of(2, dtype) - bytes_of(1, dtype) for dtype in _CACHE_DTYPES}


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
