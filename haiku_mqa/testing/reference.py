"""A second reading of the config: a plain decoder in NumPy, float64, one token a time.

Nothing of it is shared with the code it judges but the config and the parameter
paths. It loops over rows, heads and queries, copies each key/value head to its group,
and is slow; it is what the words of ``DecoderConfig`` say, written down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from haiku_mqa.config import DecoderConfig
from haiku_mqa.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

Array = np.ndarray
Params = Mapping[str, Mapping[str, Any]]


def reference_logits(
    config: DecoderConfig, params: Params, tokens: np.ndarray
) -> np.ndarray:
    """Returns a decoder's logits, computed the plain way.

    Args:
      config: What the decoder is.
      params: Its parameters, under this package's paths.
      tokens: int ``[B, T]``.

    Returns:
      float64 ``[B, T, V]``.
    """
    wide = {
        module: {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
        for module, leaves in params.items()
    }
    return np.stack([_row(config, wide, row) for row in np.asarray(tokens)])


def _row(config: DecoderConfig, params: Params, tokens: Array) -> Array:
    embeddings = params["decoder_lm/embed"]["embeddings"]
    x = embeddings[tokens] * (config.embedding_scale or 1.0)
    if config.position_embedding == "learned":
        x = x + params["decoder_lm/position_embed"]["embeddings"][: len(tokens)]
    for layer in range(config.num_layers):
        x = _block(config, params, f"decoder_lm/decoder/layer_{layer}", layer, x)
    if config.final_norm:
        x = _norm(config, params["decoder_lm/decoder/final_norm"], x)
    if config.tie_embeddings:
        logits = x @ embeddings.T
    else:
        logits = x @ params["decoder_lm/unembed"]["w"]
    if config.logit_bias:
        logits = logits + params["decoder_lm/unembed"]["b"]
    return _cap(logits * (config.logit_scale or 1.0), config.final_logit_softcap)


def _block(
    config: DecoderConfig, params: Params, path: str, layer: int, x: Array
) -> Array:
    def norm(name: str, placements: tuple[str, ...], y: Array) -> Array:
        if config.norm_placement not in placements:
            return y
        return _norm(config, params[f"{path}/{name}"], y)

    def attend(y: Array) -> Array:
        y = _attention(config, params, f"{path}/attention", layer, y)
        return scale * norm("attention_post_norm", ("after", "both"), y)

    def feed(y: Array) -> Array:
        y = _feed_forward(config, params, f"{path}/feed_forward", y)
        return scale * norm("feed_forward_post_norm", ("after", "both"), y)

    scale = config.residual_scale or 1.0
    before = ("before", "both")
    one_norm = config.block_layout == "parallel_one_norm"
    second = "attention_norm" if one_norm else "feed_forward_norm"
    attended = attend(norm("attention_norm", before, x))
    if config.block_layout != "sequential":
        return x + attended + feed(norm(second, before, x))
    x = norm("attention_post_norm", ("residual",), x + attended)
    fed = feed(norm(second, before, x))
    return norm("feed_forward_post_norm", ("residual",), x + fed)


def _attention(
    config: DecoderConfig, params: Params, path: str, layer: int, x: Array
) -> Array:
    length = len(x)
    group = config.num_heads // config.num_kv_heads
    window = config.windows[layer] or length
    scale = config.attn_scale or 1 / math.sqrt(config.key_size)
    q = _linear(params[f"{path}/query"], x).reshape(length, config.num_heads, -1)
    k = _linear(params[f"{path}/key"], x).reshape(length, config.num_kv_heads, -1)
    v = _linear(params[f"{path}/value"], x).reshape(length, config.num_kv_heads, -1)
    if config.qk_norm:
        q = _head_norm(config, params[f"{path}/query_norm"], q)
        k = _head_norm(config, params[f"{path}/key_norm"], k)
    rotary = config.rotaries[layer]
    if rotary is not None:
        theta, scaling = rotary
        q, k = (_rotate(config, theta, scaling, x) for x in (q, k))
    out = np.zeros((length, config.num_heads, config.value_size))
    for head in range(config.num_heads):
        shared = head // group
        for here in range(length):
            seen = range(max(0, here - window + 1), here + 1)
            scores = np.array([q[here, head] @ k[there, shared] for there in seen])
            scores = _cap(scores * scale, config.attn_logit_softcap)
            if config.position_embedding == "alibi":
                slope = _alibi_slope(head, config.num_heads)
                scores = scores - slope * np.array([here - there for there in seen])
            weights = np.exp(scores - scores.max())
            weights = weights / weights.sum()
            out[here, head] = sum(
                weight * v[there, shared]
                for weight, there in zip(weights, seen, strict=True)
            )
    return _linear(params[f"{path}/linear"], out.reshape(length, -1))


def _feed_forward(config: DecoderConfig, params: Params, path: str, x: Array) -> Array:
    hidden = _linear(params[f"{path}/up"], x)
    if config.gated:
        gate = _linear(params[f"{path}/gate"], x)
        return _linear(params[f"{path}/down"], _activate(config, gate) * hidden)
    return _linear(params[f"{path}/down"], _activate(config, hidden))


def _activate(config: DecoderConfig, x: Array) -> Array:
    if config.activation == "relu":
        return np.maximum(x, 0)
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    if config.activation == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _norm(config: DecoderConfig, params: Mapping[str, Array], x: Array) -> Array:
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_eps)
    scale = params["scale"] + (1 if config.norm == "rms_one_plus" else 0)
    return x * scale + params.get("offset", 0.0)


def _head_norm(config: DecoderConfig, params: Mapping[str, Array], x: Array) -> Array:
    if config.qk_norm_span == "all_heads":
        return _norm(config, params, x.reshape(len(x), -1)).reshape(x.shape)
    return _norm(config, params, x)


def _linear(params: Mapping[str, Array], x: Array) -> Array:
    return x @ params["w"] + params.get("b", 0.0)


def _cap(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * np.tanh(x / cap)


def _rotate(
    config: DecoderConfig, theta: float, scaling: RopeScaling | None, heads: Array
) -> Array:
    """Turns pairs (i, i + R / 2) of each head as complex numbers."""
    size = config.rotary_size
    half = size // 2
    pairs = range(half)
    frequencies = np.array([_frequency(config, theta, scaling, p) for p in pairs])
    factor = 1.0
    if isinstance(scaling, YarnScaling):
        factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    if isinstance(scaling, LongRopeScaling):
        ratio = math.log(scaling.factor, scaling.original_max_length)
        factor = scaling.attention_factor or (1 + ratio) ** 0.5
    turned = heads.copy()
    for here in range(len(heads)):
        numbers = heads[here, :, :half] + 1j * heads[here, :, half:size]
        numbers = numbers * np.exp(1j * here * frequencies) * factor
        turned[here, :, :half], turned[here, :, half:size] = numbers.real, numbers.imag
    return turned


def _frequency(
    config: DecoderConfig, theta: float, scaling: RopeScaling | None, pair: int
) -> float:
    size = config.rotary_size
    plain = theta ** (-2 * pair / size)
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor
    if isinstance(scaling, LongRopeScaling):
        if config.max_length > scaling.original_max_length:
            return plain / scaling.long_factors[pair]
        return plain / scaling.short_factors[pair]
    if isinstance(scaling, Llama3Scaling):
        wavelength = 2 * math.pi / plain
        if wavelength > scaling.original_max_length / scaling.low_freq_factor:
            return plain / scaling.factor
        if wavelength < scaling.original_max_length / scaling.high_freq_factor:
            return plain
        smooth = (
            scaling.original_max_length / wavelength - scaling.low_freq_factor
        ) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return (1 - smooth) * plain / scaling.factor + smooth * plain
    if isinstance(scaling, YarnScaling):

        def pair_of(turns: float) -> float:
            return (
                size
                * math.log(scaling.original_max_length / (turns * 2 * math.pi))
                / (2 * math.log(theta))
            )

        low = max(math.floor(pair_of(scaling.beta_fast)), 0)
        high = min(math.ceil(pair_of(scaling.beta_slow)), size - 1)
        ramp = min(max((pair - low) / max(high - low, 1e-3), 0), 1)
        return plain * (1 - ramp) + plain / scaling.factor * ramp
    return plain


def _alibi_slope(head: int, num_heads: int) -> float:
    power = 1
    while power * 2 <= num_heads:
        power *= 2
    if head < power:
        return 2 ** (-8 / power * (head + 1))
    return 2 ** (-8 / (2 * power) * (2 * (head - power) + 1))
