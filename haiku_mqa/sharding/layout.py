"""What lies where: parameters, a training state, rows of a batch, and a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import haiku as hk
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from haiku_mqa import kernels
from haiku_mqa.cache import KVCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules import MultiQueryAttention, TransformerDecoderBlock
from haiku_mqa.ops import QuantizedMatrix
from haiku_mqa.sharding.rules import PARAMETERS, Axis, Rule, places, rule_of, spec_of

_ROWS = ("data", "fsdp")  # axes of the mesh that split rows
_ALL = (*_ROWS, "tensor")
_ROOT = "decoder_lm"


@dataclasses.dataclass(frozen=True)
class Layout:
    """What lies where on a mesh; hashable, so that programs are kept by it.

    Attributes:
      config: Of the decoder.
      mesh: The devices.
      own: Rules of the user's, which come before the library's.
    """

    config: DecoderConfig
    mesh: Mesh
    own: tuple[Rule, ...] = ()

    def on(self, *axes: Axis) -> NamedSharding:
        """Returns where an array lies.

        Args:
          *axes: For each axis of the array those of the mesh that split it.
        """
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    # --- Parameters, and what has their paths ------------------------------------

    def params(self, params: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Returns where each parameter lies, quantized ones too.

        Args:
          params: Parameters, or their shapes.
        """
        return {
            module: {
                name: self._of(module, name, leaf) for name, leaf in leaves.items()
            }
            for module, leaves in params.items()
        }

    def state(self, state: Any) -> Any:
        """Returns where a training state lies: what has a parameter's path, as it does.

        Args:
          state: The state, or its shapes.
        """
        return jax.tree_util.tree_map_with_path(self._of_state, state)

    def _of_state(self, path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if len(keys) < 2 or not keys[-2].startswith(_ROOT) or not leaf.ndim:
            return self.on()
        return self._of(keys[-2], keys[-1], leaf)

    def _of(self, module: str, name: str, leaf: Any) -> Any:
        path = f"{module}/{name}".removeprefix(f"{_ROOT}/")
        rule = rule_of(path, PARAMETERS, self.own)
        spec = spec_of(rule, places(self.config, self.mesh))
        if not isinstance(leaf, QuantizedMatrix):
            return self.on(*spec)
        scaled, other = spec[leaf.axis], spec[1 - leaf.axis]
        return dataclasses.replace(
            leaf, values=self.on(scaled, other), scales=self.on(scaled)
        )

    # --- Rows ---------------------------------------------------------------------

    def rows(self, count: int) -> Axis:
        """Returns what splits the rows of a batch: nothing, where it would not be even.

        Args:
          count: B.
        """
        return None if count % self._size(_ROWS) else _ROWS

    def batch(self, batch: Any) -> Any:
        """Returns where a batch of training lies.

        Args:
          batch: Arrays ``[B, ...]``.
        """
        return jax.tree.map(lambda leaf: self.on(self.rows(leaf.shape[0])), batch)

    def cache(self, cache: KVCache) -> KVCache:
        """Returns where a cache lies.

        Heads go over ``tensor`` where it divides them; else rows do, and each device
        has all heads of fewer rows (Pope et al. 2022); else each has everything.

        Args:
          cache: The cache, or its shapes.
        """
        rows = self.cache_rows(cache.batch_size)
        of_leaf = functools.partial(self._of_cached, rows)
        return jax.tree.map(of_leaf, cache)

    def _of_cached(self, rows: Axis, leaf: Any) -> NamedSharding:
        if leaf.ndim < 3:  # lengths, positions, segments
            return self.on(rows)
        return self.on(rows, self.kv_heads)

    def cache_rows(self, count: int) -> Axis:
        """Returns what splits the rows of a cache, and of what attends to it.

        Args:
          count: B.
        """
        by_batch = self.kv_heads is None and count % self._size(_ALL) == 0
        return _ALL if by_batch else self.rows(count)

    @property
    def kv_heads(self) -> Axis:
        """What splits key/value heads."""
        return places(self.config, self.mesh)["kv_heads"]

    def _size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    # --- Between the layers -------------------------------------------------------

    @contextlib.contextmanager
    def applied(self, *, has_cache: bool) -> Iterator[None]:
        """Has what a decoder computes inside lie where it should.

        By interception, so that no module knows of it.

        Args:
          has_cache: Whether the decoder attends to a cache.
        """

        def place(
            method: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            context: hk.MethodContext,
        ) -> Any:
            name, module = context.method_name, context.module
            if isinstance(module, TransformerDecoderBlock) and name == "__call__":
                x, *rest = args
                return method(self._put(x, self.rows(len(x))), *rest, **kwargs)
            if isinstance(module, MultiQueryAttention) and name == "attend":
                return self._attended(method, args, kwargs, has_cache)
            return method(*args, **kwargs)

        with hk.intercept_methods(place), kernels.without():
            yield

    def _attended(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        has_cache: bool,
    ) -> Any:
        q, k, v, *rest = args
        rows = self.rows(len(q))
        past = self.cache_rows(len(q)) if has_cache else rows
        heads = "tensor" if past == rows else None
        q = self._put(q, past, None, heads)
        k, v = (self._put(x, past, None, self.kv_heads) for x in (k, v))
        attended, weights = method(q, k, v, *rest, **kwargs)
        return self._put(attended, rows, None, "tensor"), weights

    def _put(self, x: jax.Array, *axes: Axis) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, self.on(*axes))
