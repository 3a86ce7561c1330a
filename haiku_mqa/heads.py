"""Fewer or more key/value heads for a decoder that is trained already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from haiku_mqa._arguments import check_kv_heads
from haiku_mqa.checks import check_params
from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import unknown_name
from haiku_mqa.model import Params, build

Method = Literal["mean", "first", "random"]


def convert_heads(
    config: DecoderConfig,
    params: Params,
    num_kv_heads: int,
    method: Method = "mean",
    *,
    rng: jax.Array | None = None,
) -> tuple[DecoderConfig, dict[str, dict[str, jax.Array]]]:
    """Gives a decoder another number of key/value heads.

    Fewer heads each stand for a group of the old ones (Ainslie et al. 2023, *GQA:
    Training Generalized Multi-Query Transformer Models from Multi-Head
    Checkpoints*): another function, near enough to be healed by a little training.
    More heads are copies, and the function is exactly the same; taking their mean
    leads back.

    Args:
      config: What the decoder is.
      params: Its parameters; they are not changed.
      num_kv_heads: How many heads it shall have: a divisor of its present number,
        or a multiple of it that divides ``num_heads``.
      method: How fewer heads are made: ``"mean"`` of each group (the best in the
        paper), the ``"first"`` of each group, or ``"random"`` new ones. More heads
        are copies whatever it is.
      rng: PRNG key, needed for ``"random"`` alone.

    Returns:
      Config and parameters of the converted decoder.

    Raises:
      ValueError: ``num_kv_heads`` fits neither way, ``method`` is unknown, ``rng`` is
        missing, or the parameters are not the config's.

    Example:
      >>> config = DecoderConfig(vocab_size=256, num_layers=2, num_heads=8,
      ...     num_kv_heads=8, d_model=64, d_ff=256)
      >>> params = build(config).init(jax.random.key(0))
      >>> multi_query, fewer = convert_heads(config, params, num_kv_heads=1)
      >>> multi_query.num_kv_heads
      1
      >>> fewer["decoder_lm/decoder/layer_0/attention/key"]["w"].shape
      (64, 8)
    """
    model = build(config)
    _check(config, num_kv_heads, method, rng)
    check_params(params, model.param_shapes)
    converted = dataclasses.replace(config, num_kv_heads=num_kv_heads)
    regroup = _regroup(config.num_kv_heads, num_kv_heads, method)
    sizes = {"key": config.key_size, "value": config.value_size}
    if config.qk_norm_span == "all_heads":
        sizes["key_norm"] = config.key_size
    result: dict[str, dict[str, jax.Array]] = {}
    for path, leaves in params.items():
        part = path.rpartition("/")[2] if "/attention/" in path else ""
        size = sizes.get(part)
        result[path] = {
            name: leaf if size is None else regroup(leaf, size)
            for name, leaf in leaves.items()
        }
        if part == "key_norm" and config.qk_norm_span == "own_head":
            flat = regroup(leaves["scale"].reshape(-1), config.key_size)
            result[path] = {"scale": flat.reshape(num_kv_heads, config.key_size)}
    if method == "random" and rng is not None and num_kv_heads < config.num_kv_heads:
        fresh = build(converted).init(rng)
        result = {
            path: fresh[path] if path.endswith(_SHARED) else leaves
            for path, leaves in result.items()
        }
    return converted, result


_SHARED = ("/attention/key", "/attention/value")


def _check(config: DecoderConfig, num_kv_heads: int, method: str, rng: Any) -> None:
    if method not in get_args(Method):
        raise unknown_name("method", str(method), get_args(Method))
    if isinstance(num_kv_heads, bool) or not isinstance(num_kv_heads, int):
        raise ValueError(f"num_kv_heads must be a whole number, got {num_kv_heads!r}")
    check_kv_heads(config.num_heads, num_kv_heads)
    now = config.num_kv_heads
    if now % num_kv_heads and num_kv_heads % now:
        raise ValueError(
            f"num_kv_heads must divide the present {now} or be a multiple of it, "
            f"got {num_kv_heads}"
        )
    if method == "random" and rng is None and num_kv_heads < now:
        raise ValueError("rng must be given where method = 'random'")


def _regroup(
    now: int, then: int, method: Method
) -> Callable[[jax.Array, int], jax.Array]:
    """Returns what makes ``then`` heads of ``now`` on the last axis of an array."""

    def regroup(leaf: jax.Array, size: int) -> jax.Array:
        leading = leaf.shape[:-1]
        if then >= now:
            heads = leaf.reshape(*leading, now, size)
            copies = jnp.repeat(heads, then // now, axis=-2)
            return copies.reshape(*leading, then * size)
        groups = leaf.reshape(*leading, then, now // then, size)
        # The mean is taken wide: in bfloat16 a sum of many heads loses digits.
        pooled = (
            groups.astype(jnp.float32).mean(axis=-2)
            if method == "mean"
            else groups[..., 0, :]
        )
        return pooled.astype(leaf.dtype).reshape(*leading, then * size)

    return regroup
