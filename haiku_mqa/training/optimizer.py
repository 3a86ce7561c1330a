"""How gradients become updates: decay, clipping, AdamW and Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from haiku_mqa.training.optimizer_config import OptimizerConfig, learning_rate_at

_MATRICES = ("w", "embeddings")
_LOOKED_UP = ("embed", "position_embed", "unembed")
_MUON_MOMENTUM = 0.95
# Muon's updates get the root mean square of AdamW's, so that one rate serves both.
_MUON_RMS = 0.2


def decay_mask(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Returns which parameters shrink: matrices do; scales, offsets, biases do not.

    Args:
      params: Module path to parameter name to array or shape.

    Returns:
      The same of booleans.

    Example:
      >>> decay_mask({"linear": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}})
      {'linear': {'w': True, 'b': False}}
    """
    return {
        module: {name: name in _MATRICES for name in leaves}
        for module, leaves in params.items()
    }


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns a transformation that shortens gradients to a greatest global norm.

    As optax's, but for a norm that is not finite: optax divides every gradient by
    it, so that one NaN becomes a NaN everywhere. Here they are left as they are
    (Pascanu et al. 2012).

    Args:
      max_norm: The greatest norm.

    Returns:
      The transformation; it has no state.

    Example:
      >>> clip = clip_by_global_norm(1.0)
      >>> clip.update({"a": jnp.array([3.0, 4.0])}, clip.init({}))[0]["a"].tolist()
      [0.6000000238418579, 0.800000011920929]
      >>> gradients = {"a": jnp.array(jnp.nan), "b": jnp.array(1.0)}
      >>> clip.update(gradients, clip.init({}))[0]["b"].item()
      1.0
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: Any = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        norm = optax.tree.norm(updates)
        too_long = jnp.isfinite(norm) & (norm > max_norm)
        factor = jnp.where(too_long, max_norm / norm, 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(
    config: OptimizerConfig, params: Mapping[str, Mapping[str, Any]]
) -> optax.GradientTransformation:
    """Returns the optimizer that a config describes.

    Gradients are clipped, and weight decay acts on matrices alone (``decay_mask``).
    Accumulation is not done here but in the step, where parts are weighted by how
    many labels they count.

    Args:
      config: Of the optimizer.
      params: Module path to parameter name to array or shape.

    Returns:
      The optimizer, whose updates are to be added to the parameters.

    Example:
      >>> params = {"linear": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
      >>> config = OptimizerConfig(schedule="constant", warmup_steps=0)
      >>> optimizer = make_optimizer(config, params)
      >>> gradients = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
      >>> updates["linear"]["w"][0, 0].item() < 0 == updates["linear"]["b"][0].item()
      True
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return learning_rate_at(config, count)

    adamw = optax.adamw(
        schedule,
        b1=config.betas[0],
        b2=config.betas[1],
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.name == "muon":
        muon = optax.contrib.muon(
            schedule,
            beta=_MUON_MOMENTUM,
            eps=config.eps,
            weight_decay=config.weight_decay,
            consistent_rms=_MUON_RMS,
        )
        optimizer = optax.partition({"muon": muon, "adamw": adamw}, _labels(params))
    else:
        optimizer = adamw
    if config.clip_norm is None:
        return optimizer
    return optax.chain(clip_by_global_norm(config.clip_norm), optimizer)


def _labels(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Returns which optimizer each parameter gets where hidden matrices get Muon."""

    def label(module: str, name: str) -> str:
        hidden = name == "w" and module.rpartition("/")[2] not in _LOOKED_UP
        return "muon" if hidden else "adamw"

    return {
        module: {name: label(module, name) for name in leaves}
        for module, leaves in params.items()
    }
