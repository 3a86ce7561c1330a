"""A model whose parameters, states and caches lie over the devices of a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, get_args

import jax
from jax.core import Tracer
from jax.sharding import Mesh

from haiku_mqa.cache import KVCache
from haiku_mqa.errors import unknown_name
from haiku_mqa.model import Model, Params
from haiku_mqa.modules.language_model import DecoderOutput
from haiku_mqa.sharding.layout import CacheSplit, Layout
from haiku_mqa.sharding.mesh import AXES, make_mesh
from haiku_mqa.sharding.processes import is_alone, put
from haiku_mqa.sharding.rules import Rule, check_divides


@dataclasses.dataclass(frozen=True)
class ShardedModel(Model):
    """A model over several devices: what takes a ``Model`` takes it.

    Its results are the model's, but for rounding. Parameters that ``init`` draws are
    those that the plain model draws, and no device ever holds more than its part.

    Attributes:
      layout: What lies where.

    Example:
      >>> from haiku_mqa import DecoderConfig, build, generate
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> model = shard(build(config), "data=1")
      >>> params = model.init(jax.random.key(0))
      >>> generate(model, params, [[1, 2, 3]], max_new_tokens=2).finish_reasons
      ['length']
    """

    layout: Layout

    def init(self, rng: jax.Array, tokens: jax.Array | None = None) -> dict[str, Any]:
        """Returns freshly drawn parameters, each part on its devices from the first.

        Args:
          rng: PRNG key.
          tokens: As ``Model.init``.
        """
        draw = jax.jit(
            lambda rng: Model.init(self, rng, tokens),
            out_shardings=self.layout.params(self.param_shapes),
        )
        return draw(self.everywhere(rng))

    def apply(
        self, params: Params, rng: jax.Array | None, tokens: jax.Array, **options: Any
    ) -> DecoderOutput:
        """Reads tokens causally, as ``Model.apply``.

        Args:
          params: As ``init`` makes them, or as ``put`` laid them out.
          rng: PRNG key for dropout.
          tokens: int32 ``[B, T]``.
          options: Of ``Model.apply``.
        """
        has_cache = options.get("cache") is not None
        with self.layout.applied(has_cache=has_cache):
            return super().apply(params, rng, tokens, **options)

    def init_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        *,
        ring: bool = False,
    ) -> KVCache:
        """Returns an empty cache, as ``Model.init_cache``, over the devices.

        Args:
          batch_size: B, rows.
          max_length: S, room for each row in tokens.
          dtype: Of keys and values.
          ring: Whether layers with windows are rings.
        """

        def empty() -> KVCache:
            return Model.init_cache(self, batch_size, max_length, dtype, ring=ring)

        where = self.layout.cache(jax.eval_shape(empty))
        return jax.jit(empty, out_shardings=where)()

    def put(self, params: Params) -> dict[str, Any]:
        """Returns parameters laid out over the devices.

        Args:
          params: Of this config, wherever they lie; quantized ones too.
        """
        return put(params, self.layout.params(params))

    def laid_out(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function, compiled so that what it makes is born where it lies.

        What has the path of a parameter lies as that does; the rest is whole on every
        device.

        Args:
          function: Of arrays, to a tree such as a training state.

        Example:
          >>> from haiku_mqa import DecoderConfig, build
          >>> from haiku_mqa.training import OptimizerConfig, init_train_state
          >>> model = shard(build(DecoderConfig(vocab_size=256, num_layers=2,
          ...     num_heads=8, d_model=64, d_ff=256)), "data=1")
          >>> first = model.laid_out(
          ...     lambda rng: init_train_state(OptimizerConfig(), model.init(rng)))
          >>> first(jax.random.key(0)).step.item()
          0
        """

        def made(*args: Any) -> Any:
            where = self.layout.state(jax.eval_shape(function, *args))
            return jax.jit(function, out_shardings=where)(*map(self.everywhere, args))

        return made

    def everywhere(self, tree: Any) -> Any:
        """Returns arrays that are whole on every device; inside jit, too.

        Args:
          tree: Arrays.
        """
        where = jax.tree.map(lambda _: self.layout.on(), tree)
        leaves = jax.tree.leaves(tree)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return jax.lax.with_sharding_constraint(tree, where)
        return tree if is_alone() else put(tree, where)

    def put_batch(self, batch: Any) -> Any:
        """Returns a batch with its rows over the devices.

        Args:
          batch: Of training, or any tree of arrays ``[B, ...]``.

        Raises:
          ValueError: The rows cannot be split evenly.
        """
        self.check_rows(jax.tree.leaves(batch)[0].shape[0])
        return put(batch, self.layout.batch(batch))

    def check_rows(self, count: int) -> None:
        """Raises an error where the rows of a batch cannot be split evenly.

        Args:
          count: How many there are.

        Raises:
          ValueError: ``data`` and ``fsdp`` do not divide them.
        """
        shape = self.layout.mesh.shape
        parts = shape["data"] * shape["fsdp"]
        if count % parts:
            raise ValueError(
                f"data x fsdp = {parts} must divide the rows of a batch, got {count}"
            )


def shard(
    model: Model,
    mesh: str | Mesh,
    rules: Iterable[Rule] = (),
    *,
    cache_split: CacheSplit = "auto",
) -> ShardedModel:
    """Returns a model over the devices of a mesh.

    Args:
      model: The model.
      mesh: Sizes of axes, as ``make_mesh`` reads them, or a mesh with all of ``AXES``.
      rules: Where some parameters go instead of where ``PARAMETERS`` has them.
      cache_split: What of a cache goes over ``tensor``, as ``Layout`` has it.

    Returns:
      The sharded model.

    Raises:
      ValueError: There are not so many devices, the mesh has other axes, a size of the
        decoder is not divided, or there is no such split; names it.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> shard(model, "tensor=1").init(jax.random.key(0)).keys() == model.init(
      ...     jax.random.key(0)).keys()
      True
    """
    found = make_mesh(mesh) if isinstance(mesh, str) else mesh
    if found.axis_names != AXES:
        raise ValueError(f"mesh must have the axes {AXES}, got {found.axis_names}")
    check_divides(model.config, found)
    if cache_split not in get_args(CacheSplit):
        raise unknown_name("cache_split", str(cache_split), get_args(CacheSplit))
    return ShardedModel(
        model.config, Layout(model.config, found, tuple(rules), cache_split)
    )
