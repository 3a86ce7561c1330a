"""What lies where: parameters, a training state, rows of a batch, and a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import haiku as hk
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from haiku_mqa import kernels
from haiku_mqa.cache import KVCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules import (
    FeedForward,
    MultiQueryAttention,
    TransformerDecoderBlock,
)
from haiku_mqa.ops import QuantizedMatrix
from haiku_mqa.sharding.rules import PARAMETERS, Axis, Rule, places, rule_of, spec_of

_ROWS = ("data", "fsdp")  # axes of the mesh that split rows
_ALL = (*_ROWS, "tensor")
_ROOT = "decoder_lm"

_BY_ROWS = (TransformerDecoderBlock, FeedForward)  # whose inputs are split so alone

CacheSplit = Literal["auto", "heads", "rows"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What lies where on a mesh; hashable, so that programs are kept by it.

    Attributes:
      config: Of the decoder.
      mesh: The devices; without any, as a plan has it, only their axes.
      own: Rules of the user's, which come before the library's.
      cache_split: What of a cache goes over ``tensor``: ``"heads"``, or all of it is
        on every device where it does not divide them; ``"rows"``; or ``"auto"``, rows
        where heads are not divided and rows are.
    """

    config: DecoderConfig
    mesh: Mesh | AbstractMesh
    own: tuple[Rule, ...] = ()
    cache_split: CacheSplit = "auto"

    def on(self, *axes: Axis) -> NamedSharding:
        """Returns where an array lies.

        Args:
          axes: For each axis of the array those of the mesh that split it.
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
            leaf,
            values=self.on(scaled, other),
            scales=self.on(scaled),
            rest=None if leaf.rest is None else self._of(module, name, leaf.rest),
        )

    # --- Rows ---------------------------------------------------------------------

    def rows(self, count: int) -> Axis:
        """Returns what splits the rows of a batch: nothing, where it would not be even.

        Args:
          count: B.
        """
        return None if count % self._size(_ROWS) else _ROWS

    def rows_here(self, count: int) -> slice:
        """Returns which rows of a batch this process makes: those its devices hold.

        It makes all of them on a mesh where they are no block, or where two processes
        share some rows and not others.

        Args:
          count: B.
        """
        held: dict[int, set[int]] = {}
        where = self.on(self.rows(count)).devices_indices_map((count,))
        for device, (rows,) in where.items():
            held.setdefault(device.process_index, set()).update(range(count)[rows])
        mine = held[jax.process_index()]
        block = slice(min(mine), max(mine) + 1)
        is_block = len(mine) == block.stop - block.start
        parts = {frozenset(rows) for rows in held.values()}
        is_even = sum(map(len, parts)) == count and len({*map(len, parts)}) == 1
        return block if is_block and is_even else slice(0, count)

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
        ``cache_split`` says otherwise.

        Args:
          cache: The cache, or its shapes.

        Raises:
          ValueError: It shall go by rows, and those are not divided.
        """
        rows, heads = self.cached(cache.batch_size)
        return jax.tree.map(
            lambda leaf: self.on(rows, heads) if leaf.ndim > 2 else self.on(rows), cache
        )

    def cached(self, count: int) -> tuple[Axis, Axis]:
        """Returns what splits the rows and the heads of a cache.

        Args:
          count: B.

        Raises:
          ValueError: It shall go by rows, and those are not divided.
        """
        heads = places(self.config, self.mesh)["kv_heads"]
        parts = self._size(_ALL)
        if self.cache_split == "rows" and count % parts:
            raise ValueError(
                f"data x fsdp x tensor = {parts} must divide the rows of a cache that "
                f"goes by rows, got {count}"
            )
        by_rows = self.cache_split == "rows" or (
            self.cache_split == "auto" and heads is None and count % parts == 0
        )
        return (_ALL, None) if by_rows else (self.rows(count), heads)

    def _size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    # --- Between the layers -------------------------------------------------------

    @contextlib.contextmanager
    def applied(self, *, has_cache: bool) -> Iterator[None]:
        """Has what a decoder computes inside lie where it should.

        By interception, so that no module knows of it.

        Args:
          has_cache: Whether the decoder attends to a cache.

        Returns:
          A context.
        """

        def place(
            method: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            context: hk.MethodContext,
        ) -> Any:
            name, module = context.method_name, context.module
            if isinstance(module, _BY_ROWS) and name == "__call__":
                x, *rest = args
                return method(self._put(x, self.rows(len(x))), *rest, **kwargs)
            if isinstance(module, MultiQueryAttention) and name == "remember":
                return self._remembered(method, *args)
            if isinstance(module, MultiQueryAttention) and name == "attend":
                return self._attended(method, args, kwargs, has_cache)
            return method(*args, **kwargs)

        with hk.intercept_methods(place), kernels.without():
            yield

    def _remembered(
        self, method: Callable[..., Any], cache: Any, slots: jax.Array, *new: jax.Array
    ) -> Any:
        """Has each device write its own rows and heads.

        The partitioner does not see that a token's place is in its own row and head,
        and would gather the whole past of a layer to write to it.
        """
        rows, heads = self.cached(len(slots))
        past = jax.tree.map(lambda _: PartitionSpec(rows, heads), cache)
        tokens = PartitionSpec(rows, None, heads)
        written = jax.shard_map(
            method,
            mesh=self.mesh,
            in_specs=(past, PartitionSpec(rows), *(tokens for _ in new)),
            out_specs=(past, *(tokens for _ in new)),
            check_vma=False,
        )
        return written(cache, slots, *new)

    def _attended(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        has_cache: bool,
    ) -> Any:
        q, k, v, mask = args
        rows = self.rows(len(q))
        past, kv_heads = rows, places(self.config, self.mesh)["kv_heads"]
        if has_cache:
            past, kv_heads = self.cached(len(q))
        heads = "tensor" if past == rows else None
        if kwargs.get("dropout_rng") is None and self._is_split_evenly(heads, kv_heads):
            apart = _Apart(self.mesh, past, heads, kv_heads)
            attended, weights = apart.attend(method, q, k, v, mask, kwargs)
        else:  # what is dropped is drawn for all heads together
            q = self._put(q, past, None, heads)
            k, v = (self._put(x, past, None, kv_heads) for x in (k, v))
            attended, weights = method(q, k, v, mask, **kwargs)
        return self._put(attended, rows, None, "tensor"), weights

    def _is_split_evenly(self, heads: Axis, kv_heads: Axis) -> bool:
        """Whether the query heads of each device read key/value heads that it has."""
        if heads is None or kv_heads is not None:
            return True
        return self.mesh.shape["tensor"] % self.config.num_kv_heads == 0

    def _put(self, x: jax.Array, *axes: Axis) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, self.on(*axes))


@dataclasses.dataclass(frozen=True)
class _Apart:
    """Attention by each device alone: rows and heads know nothing of each other.

    The partitioner does not see that, where heads of a group are made rows of one
    product, and would gather what is split.
    """

    mesh: Mesh | AbstractMesh
    rows: Axis
    heads: Axis
    kv_heads: Axis

    def attend(
        self,
        method: Callable[..., Any],
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None,
        options: Mapping[str, Any],
    ) -> tuple[jax.Array, jax.Array | None]:
        bias, with_weights = options.get("bias"), options.get("return_weights", False)
        given = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias}
        arrays = {name: array for name, array in given.items() if array is not None}

        def own(arrays: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
            arrays = self._with_own_heads(arrays)
            q, k, v = (arrays[name] for name in "qkv")
            own_options = {**options, "bias": arrays.get("bias")}
            found = method(q, k, v, arrays.get("mask"), **own_options)
            return found if with_weights else found[:1]

        specs = {name: self._spec(name, array) for name, array in arrays.items()}
        weights = (PartitionSpec(self.rows, self.heads),) if with_weights else ()
        found = jax.shard_map(
            own,
            mesh=self.mesh,
            in_specs=(specs,),
            out_specs=(PartitionSpec(self.rows, None, self.heads), *weights),
            check_vma=False,
        )(arrays)
        return found[0], found[1] if with_weights else None

    def _spec(self, name: str, array: jax.Array) -> PartitionSpec:
        if name in "qkv":
            heads = self.heads if name == "q" else self.kv_heads
            return PartitionSpec(self.rows, None, heads)
        # A mask or a bias can be the same for all rows, or for all heads.
        rows, heads = array.shape[:2]
        return PartitionSpec(
            self.rows if rows > 1 else None, self.heads if heads > 1 else None
        )

    def _with_own_heads(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns what is given with the one key/value head that is read here."""
        if self.heads is None or self.kv_heads is not None:
            return arrays
        count = arrays["k"].shape[2]
        devices = self.mesh.shape["tensor"]
        index = jax.lax.axis_index("tensor") // (devices // count)
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=index, slice_size=1, axis=2
        )
        return {**arrays, "k": cut(arrays["k"]), "v": cut(arrays["v"])}
