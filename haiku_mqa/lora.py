"""Low-rank adapters for any model, added from outside by Haiku's own getters.

Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*. A matrix W that
is not trained any more is read as W + (alpha / rank) · A B, where A is ``[in, rank]``
and B ``[rank, out]``. No module knows of it: ``hk.custom_getter`` changes what a
module gets when it asks for its matrix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_mqa._arguments import check_positive, whole_number
from haiku_mqa.checks import check_params
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import Model, Params
from haiku_mqa.modules.language_model import DecoderLM, DecoderOutput

ATTENTION = ("query", "key", "value", "linear")
FEED_FORWARD = ("gate", "up", "down")
_BELOW = "/lora"  # a matrix's adapter is the module of this name below its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which matrices have adapters, and of what size.

    Attributes:
      rank: Of A B, at least 1.
      alpha: The adapter is scaled by alpha / rank, > 0.
      targets: The matrices, by the names of their modules: of attention ``query``,
        ``key``, ``value``, ``linear``, of the feed-forward ``gate``, ``up``, ``down``.

    Raises:
      ValueError: A field is out of what is allowed.

    Example:
      >>> LoRA(rank=4).scale
      4.0
      >>> LoRA(targets=("queries",))
      Traceback (most recent call last):
      ValueError: targets must be among 'query', 'key', 'value', 'linear', 'gate', \
'up', 'down', got 'queries'
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        """Checks every field."""
        whole_number("rank", self.rank, 1)
        check_positive("alpha", self.alpha)
        known = (*ATTENTION, *FEED_FORWARD)
        wrong = [name for name in self.targets if name not in known]
        if wrong or not self.targets:
            listed = ", ".join(map(repr, known))
            got = repr(wrong[0]) if wrong else "none"
            raise ValueError(f"targets must be among {listed}, got {got}")

    @property
    def scale(self) -> float:
        """What the product of an adapter is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class AdaptedModel(Model):
    """A model whose matrices have adapters; used as any other model.

    Its parameters are the model's and, below each adapted matrix's module,
    ``lora/a`` and ``lora/b``.

    Attributes:
      config: What the decoder is.
      lora: Which matrices have adapters.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16)
      >>> model, adapted = Model(config), AdaptedModel(config, LoRA(rank=2))
      >>> params = model.init(jax.random.key(0))
      >>> more = adapted.add_adapters(params, jax.random.key(1))
      >>> more["decoder_lm/decoder/layer_0/attention/query/lora"]["a"].shape
      (8, 2)
      >>> tokens = jnp.array([[1, 2, 3]])  # b is zero: as yet nothing has changed
      >>> bool((adapted.apply(more, None, tokens).logits
      ...     == model.apply(params, None, tokens).logits).all())
      True
    """

    lora: LoRA

    def init(self, rng: jax.Array, tokens: jax.Array | None = None) -> dict[str, Any]:
        """Returns freshly drawn parameters, adapters among them."""
        own, adapters = jax.random.split(rng)
        return self.add_adapters(super().init(own, tokens), adapters)

    def add_adapters(self, params: Params, rng: jax.Array) -> dict[str, Any]:
        """Returns a model's parameters with new adapters, which change nothing yet.

        Args:
          params: The model's own.
          rng: PRNG key; A is drawn, and B is zero.

        Returns:
          Both; the model's own are not copied.

        Raises:
          ValueError: They are not the model's own.
        """
        check_params(params, super().param_shapes)
        shapes = self._adapter_shapes
        drawn = {
            path: {
                "a": jax.random.normal(key, leaves["a"].shape, leaves["a"].dtype)
                * leaves["a"].shape[0] ** -0.5,
                "b": jnp.zeros(leaves["b"].shape, leaves["b"].dtype),
            }
            for key, (path, leaves) in zip(
                jax.random.split(rng, len(shapes)), shapes.items(), strict=True
            )
        }
        return {**params, **drawn}

    def merged(self, params: Params) -> dict[str, dict[str, jax.Array]]:
        """Returns the parameters of the plain model that does the same.

        Args:
          params: With adapters.

        Returns:
          Parameters without adapters, whose matrices are W + (alpha / rank) · A B.

        Raises:
          ValueError: They are not this model's.
        """
        check_params(params, self.param_shapes)
        base, adapters = split_adapters(params)
        whole = {path: dict(leaves) for path, leaves in base.items()}
        for path, adapter in adapters.items():
            leaves = whole[path.removesuffix(_BELOW)]
            leaves["w"] = _adapted(leaves["w"], adapter, self.lora.scale)
        return whole

    @property
    def plain(self) -> Model:
        """The model without adapters."""
        return Model(self.config)

    @property
    def param_shapes(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes and dtypes of the parameters, without making them."""
        return dict(sorted((super().param_shapes | self._adapter_shapes).items()))

    @property
    def _adapter_shapes(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        return {
            path + _BELOW: {
                "a": jax.ShapeDtypeStruct((w.shape[0], self.lora.rank), w.dtype),
                "b": jax.ShapeDtypeStruct((self.lora.rank, w.shape[1]), w.dtype),
            }
            for path, leaves in super().param_shapes.items()
            if path.rpartition("/")[2] in self.lora.targets
            for w in [leaves["w"]]
        }

    @property
    def _transformed(self) -> hk.Transformed:
        return _transform(self.config, self.lora.scale)


def split_adapters(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the model's own parameters and its adapters: what is trained.

    ``{**own, **adapters}`` are the parameters again.

    Args:
      params: Of an ``AdaptedModel``.

    Returns:
      Two parts, by module path.

    Example:
      >>> own, adapters = split_adapters({"x": {"w": 1}, "x/lora": {"a": 2, "b": 3}})
      >>> sorted(own), sorted(adapters)
      (['x'], ['x/lora'])
    """
    own = {path: leaves for path, leaves in params.items() if not _is_adapter(path)}
    return own, {path: params[path] for path in params if path not in own}


def _is_adapter(path: str) -> bool:
    return path.endswith(_BELOW)


def _adapted(w: Any, adapter: Mapping[str, jax.Array], scale: float) -> jax.Array:
    if not isinstance(w, jax.Array):
        raise ValueError(
            f"an adapter needs a matrix of floating point, got {type(w).__name__}"
        )
    # As wide as float32: of what is added to a matrix in half precision, little
    # would be left.
    a, b = (adapter[name].astype(jnp.float32) for name in "ab")
    return (w.astype(jnp.float32) + scale * (a @ b)).astype(w.dtype)


@functools.lru_cache(maxsize=64)
def _transform(config: DecoderConfig, scale: float) -> hk.Transformed:
    def forward(tokens: jax.Array, **arguments: Any) -> DecoderOutput:
        params = hk.get_params()

        def get(getter: Any, value: Any, context: Any) -> Any:
            adapter = params.get(context.module_name + _BELOW)
            w = getter(value)
            if adapter is None or context.name != "w":
                return w
            return _adapted(w, adapter, scale)

        with hk.custom_getter(get):
            return DecoderLM(config)(tokens, **arguments)

    return hk.transform(forward)
