"""What the architectures of GGUF have in common: sizes, rotary scaling, tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, NEEDED, Keys
from haiku_mqa.pretrained.architectures._architecture import Kind, Part
from haiku_mqa.rope_scaling import LinearScaling, YarnScaling

# Keys that are understood with one value only: the one that changes nothing.
_ONLY = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "use_parallel_residual": False,
}
# Where a model came from; not what it is.
_SKIPPED = ("rope.scaling.finetuned", "tensor_data_layout")


def decoder_fields(keys: Keys) -> dict[str, Any]:
    """Returns the fields that the files of every architecture say in the same keys.

    Args:
      keys: Below the architecture's name.
    """
    for name, neutral in _ONLY.items():
        keys.only(name, neutral)
    for name in _SKIPPED:
        keys.skip(name)
    heads = keys.count("attention.head_count")
    d_model = keys.count("embedding_length")
    even = NEEDED if d_model % heads else d_model // heads
    key_size = keys.count("attention.key_length", even)
    max_length = keys.count("context_length")
    return {
        "num_layers": keys.count("block_count", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": keys.count("attention.head_count_kv", heads),
        "d_model": d_model,
        "d_ff": keys.count("feed_forward_length"),
        "key_size": key_size,
        "value_size": keys.count("attention.value_length", even),
        "max_length": max_length,
        "position_embedding": "rotary",
        "rope_theta": number(keys, "rope.freq_base", 10_000.0),
        "rope_fraction": keys.count("rope.dimension_count", key_size) / key_size,
        "rope_scaling": _rope_scaling(keys, max_length),
    }


def gated_fields(keys: Keys) -> dict[str, Any]:
    """Returns the fields of decoders with RMS norms and a gated feed-forward layer.

    Args:
      keys: Below the architecture's name.
    """
    return {
        **decoder_fields(keys),
        "norm": "rms",
        "norm_eps": number(keys, "attention.layer_norm_rms_epsilon"),
        "activation": "silu",
        "gated": True,
    }


def number(keys: Keys, name: str, default: float = NEEDED) -> float:
    """Returns the shortest number that float32 rounds to what a file holds.

    Args:
      keys: Below the architecture's name.
      name: The key.
      default: What it is where there is no such key.
    """
    return float(str(np.float32(keys.number(name, default))))


def _rope_scaling(keys: Keys, max_length: int) -> LinearScaling | YarnScaling | None:
    given = "rope.scaling.factor" in keys
    kinds = {kind: kind for kind in ("none", "linear", "yarn")}
    kind = keys.choice("rope.scaling.type", kinds, "linear" if given else "none")
    if kind == "none":
        return None
    factor = number(keys, "rope.scaling.factor")
    if kind == "linear":
        return LinearScaling(factor=factor)
    return YarnScaling(
        factor=factor,
        original_max_length=keys.count(
            "rope.scaling.original_context_length", max_length
        ),
        beta_fast=number(keys, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=number(keys, "rope.scaling.yarn_beta_slow", 1.0),
    )


# --- Tensors ---------------------------------------------------------------------


def outer_parts(config: DecoderConfig) -> Iterator[Part]:
    """Yields the parameters before the first layer and after the last norm.

    Args:
      config: Of the decoder.

    Yields:
      The embedding, and the output matrix where it is another.
    """
    table = (config.vocab_size, config.d_model)
    yield Part("token_embd.weight", table, "embed", "embeddings")
    if not config.tie_embeddings:
        yield Part("output.weight", table, "unembed", "w", "matrix")


def gated_parts(
    config: DecoderConfig, *, turned: Kind = "matrix", norm: Kind = "as_it_is"
) -> Iterator[Part]:
    """Yields the parameters of a decoder as ``gated_fields`` tells of it.

    Args:
      config: Of the decoder.
      turned: How the matrices of queries and keys lie.
      norm: How the scales of norms lie.

    Yields:
      All of them.
    """
    d, f = config.d_model, config.d_ff
    n, k = config.num_heads, config.num_kv_heads
    h, value_size = config.key_size, config.value_size
    yield from outer_parts(config)
    yield Part("output_norm.weight", (d,), "decoder/final_norm", "scale", norm)
    for i in range(config.num_layers):
        blk, layer = f"blk.{i}", f"decoder/layer_{i}"
        for name, path in (
            ("attn_norm", "attention_norm"),
            ("ffn_norm", "feed_forward_norm"),
        ):
            yield Part(f"{blk}.{name}.weight", (d,), f"{layer}/{path}", "scale", norm)
        matrices: tuple[tuple[str, tuple[int, int], str, Kind], ...] = (
            ("attn_q", (n * h, d), "attention/query", turned),
            ("attn_k", (k * h, d), "attention/key", turned),
            ("attn_v", (k * value_size, d), "attention/value", "matrix"),
            ("attn_output", (d, n * value_size), "attention/linear", "matrix"),
            ("ffn_gate", (f, d), "feed_forward/gate", "matrix"),
            ("ffn_up", (f, d), "feed_forward/up", "matrix"),
            ("ffn_down", (d, f), "feed_forward/down", "matrix"),
        )
        for name, shape, path, kind in matrices:
            yield Part(f"{blk}.{name}.weight", shape, f"{layer}/{path}", "w", kind)
