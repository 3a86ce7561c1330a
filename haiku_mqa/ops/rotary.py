"""Rotary position embedding and the ways to stretch it."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.ops.numerics import wide_dtype
from haiku_mqa.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)


def rotary_frequencies(
    rotary_size: int,
    theta: float = 10_000.0,
    scaling: RopeScaling | None = None,
    max_length: int | None = None,
) -> tuple[np.ndarray, float]:
    """Returns by how much each pair turns per token, and the rotated length.

    Follows Su et al. 2021, *RoFormer*, and the papers named at each scaling.

    Args:
      rotary_size: R, how many numbers of a head are rotated; even.
      theta: Base of the wavelengths.
      scaling: How positions are stretched past the trained context.
      max_length: Of the decoder, in tokens; LongRoPE alone asks for it.

    Returns:
      float64 ``[R // 2]`` radians per token, and the factor that multiplies rotated
      vectors (one but for YaRN and LongRoPE).

    Raises:
      ValueError: ``rotary_size`` is odd or below two, or ``max_length`` is missing.

    Example:
      >>> frequencies, factor = rotary_frequencies(4, theta=100.0)
      >>> [round(float(f), 3) for f in frequencies], factor
      ([1.0, 0.1], 1.0)
    """
    if rotary_size < 2 or rotary_size % 2:
        raise ValueError(
            f"rotary_size must be an even number >= 2, got {rotary_size}: "
            "numbers turn in pairs"
        )
    frequencies = theta ** -(np.arange(0, rotary_size, 2) / rotary_size)
    factor = 1.0
    if isinstance(scaling, LinearScaling):
        frequencies = frequencies / scaling.factor
    elif isinstance(scaling, Llama3Scaling):
        frequencies = _llama3(frequencies, scaling)
    elif isinstance(scaling, YarnScaling):
        frequencies = _yarn(frequencies, rotary_size, theta, scaling)
        factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    elif isinstance(scaling, LongRopeScaling):
        if max_length is None:
            raise ValueError("max_length must be given for LongRoPE, got None")
        frequencies = frequencies / np.array(scaling.factors(max_length))
        factor = scaling.attention_factor or _longrope_factor(scaling)
    return frequencies, factor


def apply_rotary(
    x: jax.Array, positions: jax.Array, frequencies: np.ndarray, factor: float = 1.0
) -> jax.Array:
    """Turns the leading numbers of each head by its token's position.

    Number i is paired with number i + R // 2 ("split half"); numbers past R stay as
    they are. Angles do not depend on the dtype of ``x``, and what they tell of two
    tokens depends on their distance alone, however far on they stand.

    Args:
      x: ``[B, T, N, H]``.
      positions: integer ``[B, T]``, in tokens.
      frequencies: float64 ``[R // 2]``, R <= H, from ``rotary_frequencies``.
      factor: Multiplies what was turned.

    Returns:
      ``[B, T, N, H]`` in the dtype of ``x``.

    Raises:
      ValueError: ``positions`` are not whole numbers: a bfloat16 257 is 256.

    Example:
      >>> frequencies, _ = rotary_frequencies(2)
      >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
      >>> turned = apply_rotary(x, jnp.array([[1]]), frequencies)
      >>> [round(float(i), 3) for i in turned.ravel()]  # cos 1, sin 1
      [0.54, 0.841]
    """
    chex.assert_rank([x, positions], [4, 2])
    chex.assert_equal_shape_prefix([x, positions], 2)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"positions must be whole numbers (int32), got dtype {positions.dtype}"
        )
    half = frequencies.shape[0]
    angles = _angles(positions, frequencies)[:, :, None]  # [B, T, 1, R/2]
    cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    wide = x[..., : 2 * half].astype(wide_dtype(x.dtype))
    first, second = wide[..., :half], wide[..., half:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(
        [*(part.astype(x.dtype) for part in turned), x[..., 2 * half :]], axis=-1
    )


def _angles(positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Returns float32 ``[B, T, R // 2]`` radians from -pi to pi.

    A turn is cut into 2 ** 32 steps, so that whole turns fall off an integer product
    by themselves. With theta 1e5 and R 64 a float32 product is off by 2e-5 radians at
    position 1,000 and 1e-4 at 8,000; this one by 7e-7 and 5e-6, and alike for a query
    and its key.
    """
    steps = np.round(frequencies / (2 * np.pi) * 2.0**32) % 2**32
    turned = (
        positions[..., None].astype(jnp.uint32) * steps.astype(np.uint32)[None, None]
    )
    return turned.astype(jnp.int32).astype(jnp.float32) * (2 * np.pi / 2.0**32)


def _longrope_factor(scaling: LongRopeScaling) -> float:
    original = math.log(scaling.original_max_length)
    return math.sqrt(1.0 + math.log(scaling.factor) / original)


def _llama3(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    wavelengths = 2 * np.pi / frequencies
    turns = scaling.original_max_length / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _yarn(
    frequencies: np.ndarray, rotary_size: int, theta: float, scaling: YarnScaling
) -> np.ndarray:
    def pair_with_turns(turns: float) -> float:
        """The (fractional) pair that turns so often over the trained context."""
        wavelength = scaling.original_max_length / (turns * 2 * math.pi)
        return rotary_size * math.log(wavelength) / (2 * math.log(theta))

    first = max(math.floor(pair_with_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with_turns(scaling.beta_slow)), rotary_size - 1)
    pairs = np.arange(rotary_size // 2)
    # A ramp of no width is a step; the peers keep it from dividing by zero so.
    slowed = np.clip((pairs - first) / max(last - first, 1e-3), 0.0, 1.0)
    return frequencies * (1 - slowed + slowed / scaling.factor)
