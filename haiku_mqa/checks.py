"""What a model refuses at its door, and how it says so.

JAX clamps, wraps, broadcasts or ignores most of this in silence. Shapes and dtypes are
checked always, also while tracing; values only where they can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from haiku_mqa.cache import KVCache
from haiku_mqa.config import DecoderConfig
from haiku_mqa.modules.context import make_context

Shapes = Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]


def check_params(params: Mapping[str, Mapping[str, Any]], expected: Shapes) -> None:
    """Raises ``ValueError`` listing all that is missing, extra or misshapen.

    Args:
      params: Module path to parameter name to array.
      expected: The same of shapes.

    Raises:
      ValueError: The trees differ, or a parameter is not floating point.
    """
    if not isinstance(params, Mapping):
        raise ValueError(
            "params must map module paths to parameters, as init makes them, "
            f"got {type(params).__name__}"
        )
    given = _leaves(params)
    wanted = _leaves(expected)
    faults = [f"missing {path}" for path in wanted if path not in given]
    faults += [f"extra {path}" for path in given if path not in wanted]
    for path, leaf in given.items():
        if path not in wanted:
            continue
        if tuple(leaf.shape) != tuple(wanted[path].shape):
            faults.append(
                f"{path} has shape {list(leaf.shape)}, "
                f"expected {list(wanted[path].shape)}"
            )
        elif not jnp.issubdtype(leaf.dtype, jnp.floating):
            faults.append(f"{path} has dtype {leaf.dtype}, expected floating point")
    if faults:
        shown = "; ".join(faults[:8])
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(f"params do not fit the model: {shown}{more}")


def check_finite(params: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ``ValueError`` naming parameters that hold NaN or infinity.

    Args:
      params: Module path to parameter name to array, of which values can be seen.

    Raises:
      ValueError: A parameter is not finite throughout.

    Example:
      >>> check_finite({"linear": {"w": jnp.array([1.0, jnp.nan])}})
      Traceback (most recent call last):
      ValueError: params must be finite; NaN or infinity in: linear/w
    """
    bad = [
        path
        for path, leaf in _leaves(params).items()
        # A quantized one has more than one array.
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(leaf))
    ]
    if bad:
        raise ValueError(
            f"params must be finite; NaN or infinity in: {', '.join(bad[:8])}"
        )


def check_call(
    config: DecoderConfig,
    tokens: Any,
    *,
    positions: Any,
    segment_ids: Any,
    mask: Any,
    cache: KVCache | None,
    logits_at: Any,
    has_rng: bool,
    is_training: bool,
) -> None:
    """Raises ``ValueError`` for arguments of a call that do not fit the model.

    Args:
      config: What the decoder is.
      tokens: As ``Model.apply``; likewise the rest.
      positions: See there.
      segment_ids: See there.
      mask: See there.
      cache: See there.
      logits_at: See there.
      has_rng: Whether an rng was given.
      is_training: See there.

    Raises:
      ValueError: The message names the argument, its value, and what is allowed.
    """
    check_tokens("tokens", tokens, config.vocab_size)
    for name, ids in (("positions", positions), ("segment_ids", segment_ids)):
        if ids is not None:
            _check_integers(name, ids)
            _check_shape(name, ids, tuple(tokens.shape))
            _check_range(name, ids, -(2**31), 2**31 - 1)
    if logits_at is not None:
        _check_logits_at(logits_at, *tokens.shape)
    if mask is not None and jnp.asarray(mask).dtype != jnp.bool_:
        raise ValueError(
            "mask must be boolean (True means may attend), "
            f"got dtype {jnp.asarray(mask).dtype}"
        )
    if cache is not None:
        _check_cache(config, tokens, mask, cache)
    if config.position_embedding == "learned":
        _check_learned_positions(config, tokens, positions, segment_ids, mask, cache)
    rates = (
        config.embedding_dropout,
        config.attention_dropout,
        config.residual_dropout,
    )
    if is_training and any(rates) and not has_rng:
        raise ValueError("rng must be given where is_training=True and dropout > 0")


def check_tokens(name: str, tokens: Any, vocab_size: int) -> None:
    """Raises ``ValueError`` where token ids are not whole, ``[B, T]`` and in range.

    Args:
      name: What to call them.
      tokens: Array.
      vocab_size: V.

    Raises:
      ValueError: Names the first id that is out of range, and where it stands.

    Example:
      >>> check_tokens("tokens", np.array([[5, 300]]), vocab_size=256)
      Traceback (most recent call last):
      ValueError: tokens must be from 0 to 255 (vocab_size = 256), got 300 at [0, 1]
    """
    _check_integers(name, tokens)
    if len(tokens.shape) != 2 or 0 in tokens.shape:
        raise ValueError(
            f"{name} must be [B, T] with at least one row and one token, "
            f"got shape {list(tokens.shape)}"
        )
    _check_range(name, tokens, 0, vocab_size - 1, f" (vocab_size = {vocab_size})")


def _check_integers(name: str, ids: Any) -> None:
    if not hasattr(ids, "dtype") or not jnp.issubdtype(ids.dtype, jnp.integer):
        kind = getattr(ids, "dtype", type(ids).__name__)
        raise ValueError(f"{name} must be an array of whole numbers, got {kind}")


def _check_range(
    name: str, values: Any, least: int, most: int, reason: str = ""
) -> None:
    if isinstance(values, Tracer):
        return
    # NumPy, so that an int64 id of 2**32 + 1 is seen before JAX makes it 1.
    ids = np.asarray(values)
    bad = np.argwhere((ids < least) | (ids > most))
    if len(bad):
        raise ValueError(
            f"{name} must be from {least} to {most}{reason}, "
            f"got {ids[tuple(bad[0])]} at {bad[0].tolist()}"
        )


def _check_logits_at(logits_at: Any, batch: int, length: int) -> None:
    _check_integers("logits_at", logits_at)
    if len(logits_at.shape) != 2 or logits_at.shape[0] != batch:
        raise ValueError(
            f"logits_at must be [B, M] with B = {batch}, "
            f"got shape {list(logits_at.shape)}"
        )
    _check_range("logits_at", logits_at, 0, length - 1, f" (T = {length})")


def _check_shape(name: str, ids: Any, shape: tuple[int, ...]) -> None:
    if tuple(ids.shape) != shape:
        raise ValueError(
            f"{name} must have the shape of tokens, {list(shape)}, "
            f"got {list(ids.shape)}"
        )


def _check_cache(config: DecoderConfig, tokens: Any, mask: Any, cache: KVCache) -> None:
    batch, length = tokens.shape
    if cache.batch_size != batch:
        raise ValueError(
            f"cache must have one row for each row of tokens, {batch}, "
            f"got {cache.batch_size}"
        )
    heads = (config.num_kv_heads, config.key_size, config.value_size)
    stored = {
        (layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[-1])
        for layer in cache.layers
    }
    if len(cache.layers) != config.num_layers or stored != {heads}:
        raise ValueError(
            f"cache must have {config.num_layers} layers with K, H and value size "
            f"{list(heads)}, got {len(cache.layers)} with "
            f"{', '.join(str(list(found)) for found in sorted(stored))}"
        )
    for layer, window in enumerate(config.windows):
        kept = cache.layers[layer].window
        if kept not in (None, window):
            raise ValueError(
                f"cache must keep what layer {layer} sees, {window or 'all'} tokens "
                f"back, got a ring of {kept}"
            )
    if isinstance(cache.lengths, Tracer) or isinstance(mask, Tracer) or cache.endless:
        return
    padding = mask is not None and len(mask.shape) == 2
    new = np.asarray(mask).sum(axis=1) if padding else np.full(batch, length)
    need = np.asarray(cache.lengths) + new
    if (need > cache.capacity).any():
        row = int(need.argmax())
        raise ValueError(
            f"cache has room for {cache.capacity} tokens, and row {row} needs "
            f"{need[row]}: {int(cache.lengths[row])} stored and {new[row]} new"
        )


def _check_learned_positions(
    config: DecoderConfig,
    tokens: Any,
    positions: Any,
    segment_ids: Any,
    mask: Any,
    cache: KVCache | None,
) -> None:
    arguments = (tokens, positions, segment_ids, mask, cache)
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments))
    reason = f" (max_length = {config.max_length}, the size of the learned table)"
    last = config.max_length - 1
    if positions is None and segment_ids is None and mask is None and cache is None:
        if tokens.shape[1] > config.max_length:
            raise ValueError(
                f"positions must be from 0 to {last}{reason}, "
                f"got {tokens.shape[1]} tokens"
            )
    elif not traced:
        if positions is None:
            context, _ = make_context(
                jnp.asarray(tokens),
                segment_ids=None if segment_ids is None else jnp.asarray(segment_ids),
                mask=None if mask is None else jnp.asarray(mask),
                cache=cache,
                num_heads=config.num_heads,
            )
            positions = context.positions
        _check_range("positions", positions, 0, last, reason)


def _leaves(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{module}/{name}": leaf
        for module, leaves in tree.items()
        for name, leaf in leaves.items()
    }
