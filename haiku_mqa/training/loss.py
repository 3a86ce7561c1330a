"""Cross-entropy in float32, whole or without ever holding all logits."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from haiku_mqa._arguments import whole_number
from haiku_mqa.ops.numerics import wide_dtype, wide_einsum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as its sum and what it is the sum of, so that parts can be added.

    Attributes:
      sum: float32 scalar, in nats.
      count: int32 scalar, how many labels were counted.

    Example:
      >>> Loss(jnp.float32(6.0), jnp.int32(3)).mean.item()
      2.0
    """

    sum: jax.Array
    count: jax.Array

    @property
    def mean(self) -> jax.Array:
        """Nats per counted label; zero where none was counted."""
        return self.sum / jnp.maximum(self.count, 1).astype(self.sum.dtype)


def mean_loss(losses: Iterable[Loss]) -> float:
    """Returns the mean over batches, in which each counted label weighs the same.

    All losses are computed before the first is fetched, and their sums are added
    exactly, in a wider type than their own.

    Args:
      losses: Of the batches, which count one label at least.

    Returns:
      Nats per counted label.

    Example:
      >>> mean_loss([Loss(jnp.float32(6.0), jnp.int32(3)),
      ...     Loss(jnp.float32(4.0), jnp.int32(1))])
      2.5
    """
    fetched = jax.device_get(list(losses))
    total = math.fsum(float(loss.sum) for loss in fetched)
    return total / sum(int(loss.count) for loss in fetched)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Loss:
    """Returns how surprised logits are by labels.

    Where the mask is False neither the logits nor the label matter, be they NaN or
    -100: the loss and its gradient there are zero. Where it is True a label out of
    range is refused, or gives NaN under jit: it is never scored as another label.

    Args:
      logits: ``[..., V]``, computed with in float32.
      labels: integer ``[...]``, from 0 to V - 1 where the mask is True.
      mask: bool ``[...]``, which labels count; all if ``None``.

    Returns:
      The sum, in nats, and the count.

    Raises:
      ValueError: A counted label is out of range, or a shape or dtype does not fit.

    Example:
      >>> logits, labels = jnp.zeros((1, 3, 4)), jnp.array([[0, 3, -100]])
      >>> loss = cross_entropy(logits, labels, mask=labels >= 0)
      >>> loss.count.item(), round(loss.mean.item(), 4)  # ln 4
      (2, 1.3863)
      >>> cross_entropy(logits, labels)
      Traceback (most recent call last):
      ValueError: labels must be from 0 to 3 (V = 4) where mask counts them, got \
-100 at [0, 2]; leave it out by the mask
    """
    _check_labels(labels, mask, logits.shape[:-1], logits.shape[-1])
    mask = _as_mask(mask, labels)
    # Before the exponential, so that NaN there cannot reach a gradient.
    logits = jnp.where(mask[..., None], logits.astype(wide_dtype(logits.dtype)), 0)
    each, _ = _surprise(logits, jnp.asarray(labels, jnp.int32), mask)
    return Loss(each.sum(), mask.sum(dtype=jnp.int32))


def chunked_cross_entropy(
    x: jax.Array,
    matrix: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    chunk: int = 1024,
    scale: float | None = None,
    softcap: float | None = None,
) -> Loss:
    """Returns ``cross_entropy`` of ``x @ matrix.T``, a chunk of positions at a time.

    The ``[B, T, V]`` logits are never held, forward or backward. Where gradients are
    asked for, each chunk's are computed together with its loss, so that nothing is
    computed twice: the products are those of the plain form (after Wijmans et al.
    2024, *Cut Your Losses in Large-Vocabulary Language Models*, and Hsu et al. 2024,
    *Liger Kernel*). For the same reason it has no second derivative.

    Args:
      x: ``[..., D]``, what logits are made from.
      matrix: ``[V, D]``, each token's vector; read in x's dtype, and its gradient is
        summed in float32.
      labels: integer ``[...]``, from 0 to V - 1 where the mask is True.
      mask: bool ``[...]``, which labels count; all if ``None``.
      chunk: At most how many positions' logits are held at a time.
      scale: Factor on the logits, before they are capped; ``None`` is one.
      softcap: Caps the logits c * tanh(x / c); ``None`` is off.

    Returns:
      The sum, in nats, and the count.

    Raises:
      ValueError: A counted label is out of range, or a shape, a dtype or the chunk
        does not fit.

    Example:
      >>> x, matrix = jnp.ones((2, 5, 3)), jnp.eye(4, 3)
      >>> labels = jnp.zeros((2, 5), jnp.int32)
      >>> loss = chunked_cross_entropy(x, matrix, labels, chunk=4)
      >>> whole = cross_entropy(x @ matrix.T, labels)
      >>> round(loss.mean.item(), 4), round(whole.mean.item(), 4)
      (1.2143, 1.2143)
    """
    chunk = whole_number("chunk", chunk)
    if matrix.ndim != 2 or matrix.shape[1] != x.shape[-1]:
        raise ValueError(
            f"matrix must be [V, D] with D = {x.shape[-1]}, "
            f"got shape {list(matrix.shape)}"
        )
    _check_labels(labels, mask, x.shape[:-1], matrix.shape[0])
    mask = _as_mask(mask, labels)
    x = jnp.where(mask[..., None], x, 0)
    count = mask.sum(dtype=jnp.int32)

    positions = mask.size
    chunks = max(1, -(-positions // chunk))
    size = -(-positions // chunks)  # even chunks, so that little is padded

    def cut(values: jax.Array) -> jax.Array:
        flat = values.reshape(positions, *values.shape[mask.ndim :])
        room = [(0, chunks * size - positions)] + [(0, 0)] * (flat.ndim - 1)
        return jnp.pad(flat, room).reshape(chunks, size, *flat.shape[1:])

    pieces = cut(x), cut(jnp.asarray(labels, jnp.int32)), cut(mask)
    return Loss(_sum_of_chunks(_Shaping(scale, softcap), matrix, pieces), count)


# --- One chunk after another ----------------------------------------------------------

# Chunks of positions: x [C, P, D], labels and mask [C, P].
_Pieces = tuple[jax.Array, jax.Array, jax.Array]


class _Shaping(NamedTuple):
    """What becomes of the products before they are logits."""

    scale: float | None
    softcap: float | None


def _logits(x: jax.Array, matrix: jax.Array, shaping: _Shaping) -> jax.Array:
    scale, softcap = shaping
    logits = wide_einsum("pd,vd->pv", x, matrix)
    logits = logits if scale is None else scale * logits
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_chunks(shaping: _Shaping, matrix: jax.Array, pieces: _Pieces) -> jax.Array:
    """Returns the sum of the loss; differentiable in the matrix and in x."""
    dtype = pieces[0].dtype
    read = matrix.astype(dtype)

    def body(total: jax.Array, piece: _Pieces) -> tuple[jax.Array, None]:
        x, labels, mask = piece
        each, _ = _surprise(_logits(x, read, shaping), labels, mask)
        return total + each.sum(), None

    return jax.lax.scan(body, jnp.zeros((), wide_dtype(dtype)), pieces)[0]


def _sum_and_gradients(
    shaping: _Shaping, matrix: jax.Array, pieces: _Pieces
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    dtype = pieces[0].dtype
    read, wide = matrix.astype(dtype), wide_dtype(dtype)
    vocabulary = jnp.arange(matrix.shape[0])[None, :]
    scale, softcap = shaping

    def body(
        sums: tuple[jax.Array, jax.Array], piece: _Pieces
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        (total, d_matrix), (x, labels, mask) = sums, piece
        logits = _logits(x, read, shaping)
        each, likely = _surprise(logits, labels, mask)
        d_logits = jnp.where(vocabulary == labels[:, None], likely - 1, likely)
        d_logits = jnp.where(mask[:, None], d_logits, 0)
        if softcap is not None:
            d_logits = d_logits * (1 - (logits / softcap) ** 2)
        d_logits = d_logits if scale is None else scale * d_logits
        d_logits = d_logits.astype(dtype)
        d_x = wide_einsum("pv,vd->pd", d_logits, read).astype(dtype)
        d_matrix = d_matrix + wide_einsum("pv,pd->vd", d_logits, x)
        return (total + each.sum(), d_matrix), d_x

    zeros = jnp.zeros((), wide), jnp.zeros(matrix.shape, wide)
    (total, d_matrix), d_x = jax.lax.scan(body, zeros, pieces)
    return total, (d_matrix.astype(matrix.dtype), d_x)


def _scaled_gradients(
    shaping: _Shaping, gradients: tuple[jax.Array, jax.Array], factor: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, None, None]]:
    # Scaled in float32: the factor, one over a count, is coarse in bfloat16.
    d_matrix, d_x = (
        (factor * gradient.astype(factor.dtype)).astype(gradient.dtype)
        for gradient in gradients
    )
    return d_matrix, (d_x, None, None)


_sum_of_chunks.defvjp(_sum_and_gradients, _scaled_gradients)


# --- What both forms share ------------------------------------------------------------


def _surprise(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns each label's loss ``[...]``, and all likelihoods ``[..., V]``."""
    size = logits.shape[-1]
    greatest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    powers = jnp.exp(logits - greatest)
    total = powers.sum(axis=-1, keepdims=True)
    index = jnp.clip(labels, 0, size - 1)[..., None]
    chosen = jnp.take_along_axis(logits, index, axis=-1)
    each = (jnp.log(total) + greatest - chosen)[..., 0]
    each = jnp.where((labels >= 0) & (labels < size), each, jnp.nan)
    return jnp.where(mask, each, 0), powers / total


def _as_mask(mask: jax.Array | None, labels: jax.Array) -> jax.Array:
    return jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask)


def _check_labels(labels: Any, mask: Any, shape: tuple[int, ...], size: int) -> None:
    """Raises ``ValueError`` where labels do not fit; looks at values it can see."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask must be boolean (True means counted), got dtype {mask.dtype}"
        )
    for name, values in (("labels", labels), ("mask", mask)):
        if values is not None and tuple(values.shape) != tuple(shape):
            raise ValueError(
                f"{name} must have shape {list(shape)}, one for each position, "
                f"got {list(values.shape)}"
            )
    if isinstance(labels, Tracer) or isinstance(mask, Tracer):
        return
    ids = np.asarray(labels)
    counted = np.ones(ids.shape, bool) if mask is None else np.asarray(mask)
    bad = np.argwhere(counted & ((ids < 0) | (ids >= size)))
    if len(bad):
        raise ValueError(
            f"labels must be from 0 to {size - 1} (V = {size}) where mask counts "
            f"them, got {ids[tuple(bad[0])]} at {bad[0].tolist()}; "
            "leave it out by the mask"
        )
