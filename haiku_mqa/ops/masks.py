"""Which positions may attend to which. True means may attend, everywhere."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def causal_mask(seq_len: int) -> jax.Array:
    """Returns the mask by which each position sees itself and what came before.

    Args:
      seq_len: T, how many positions, in tokens.

    Returns:
      bool ``[T, T]``: row t is True up to and including column t.

    Raises:
      ValueError: ``seq_len`` is not a whole number >= 1.

    Example:
      >>> causal_mask(3).astype(int)
      Array([[1, 0, 0],
             [1, 1, 0],
             [1, 1, 1]], dtype=int32)
    """
    if isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 1:
        raise ValueError(f"seq_len must be a whole number >= 1, got {seq_len!r}")
    return jnp.tril(jnp.ones((seq_len, seq_len), dtype=bool))


def broadcast_mask(
    mask: jax.Array, batch: int, heads: int, queries: int, keys: int
) -> jax.Array:
    """Returns a mask with four axes, once its shape is one that can be meant.

    A query axis of one stands for every query, as a padding mask has it. The key
    axis never broadcasts: a mask that says the same of every key is a mask laid
    along the wrong axis.

    Args:
      mask: bool ``[T, S]``, ``[B, T, S]`` or ``[B, N, T, S]``; B, N and T may be 1.
      batch: B.
      heads: N.
      queries: T.
      keys: S.

    Returns:
      bool ``[B or 1, N or 1, T or 1, S]``.

    Raises:
      ValueError: The mask is not boolean, or its shape fits none of these.
    """
    if mask.dtype != jnp.bool_:
        # A float mask of 0 and -1e9 would otherwise turn masking off in silence.
        raise ValueError(
            f"mask must be boolean (True means may attend), got dtype {mask.dtype}; "
            "for an additive mask pass `additive_mask >= 0`"
        )
    allowed = (batch, heads, queries, keys)
    axes = {2: (2, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}.get(mask.ndim)
    fits = axes is not None and all(
        size == allowed[axis] or (size == 1 and axis != 3)
        for size, axis in zip(mask.shape, axes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"mask must be [T, S], [B, T, S] or [B, N, T, S] with B = {batch}, "
            f"N = {heads}, T = {queries}, S = {keys} (B, N and T may be 1), "
            f"got shape {list(mask.shape)}"
        )
    if mask.ndim == 2:
        return mask[None, None]
    return mask[:, None] if mask.ndim == 3 else mask


def window_mask(distance: jax.Array, window: int) -> jax.Array:
    """Returns which keys stand within a sliding window behind their query.

    Args:
      distance: int32 ``[..., T, S]``, how many tokens each key stands behind.
      window: How many tokens may be seen, the query's own included.

    Returns:
      bool ``[..., T, S]``.

    Example:
      >>> window_mask(3 - jnp.arange(4), window=2)  # what the fourth token sees
      Array([False, False,  True,  True], dtype=bool)
    """
    chex.assert_type(distance, int)
    return distance < window
