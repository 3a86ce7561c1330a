"""What the metadata of a ``llama`` GGUF file says, as a ``DecoderConfig``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained._bounds import in_one_line
from haiku_mqa.rope_scaling import LinearScaling, YarnScaling

# More layers or heads than any decoder has, and few enough to loop over.
_MOST = 2**20

_SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
)
_OTHERS = (
    "vocab_size",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    # Where the model came from; not what it is.
    "rope.scaling.finetuned",
    "tensor_data_layout",
)
# Keys that are understood with one value only: the one that changes nothing.
_ONLY = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "use_parallel_residual": False,
}


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensors: Collection[str],
    *,
    dtype: DType = "float32",
) -> DecoderConfig:
    """Returns the config of a ``llama`` decoder in a GGUF file.

    Args:
      metadata: The file's metadata.
      tensors: The names of its tensors: without ``output.weight`` the output matrix
        is the embedding's.
      dtype: What the decoder computes in, and what its parameters become.

    Returns:
      The config.

    Raises:
      ValueError: The architecture is not ``llama``, or the file asks for what this
        library does not do (experts, an unknown rotary scaling, any ``llama.`` key
        that is not understood); the key is named.
      FormatError: A key is missing, or its value cannot be.

    Example:
      >>> config = config_from_gguf({
      ...     "general.architecture": "llama", "llama.block_count": 2,
      ...     "llama.context_length": 128, "llama.embedding_length": 64,
      ...     "llama.feed_forward_length": 256, "llama.attention.head_count": 8,
      ...     "llama.attention.head_count_kv": 1, "llama.vocab_size": 256,
      ...     "llama.attention.layer_norm_rms_epsilon": 1e-5,
      ... }, tensors=["token_embd.weight"])
      >>> config.num_kv_heads, config.key_size, config.tie_embeddings
      (1, 8, True)
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(
            "general.architecture must be 'llama', got "
            f"{'nothing' if architecture is None else in_one_line(architecture)}"
        )
    _refuse_unknown(metadata)
    layers, length, d_model, d_ff, heads = (_whole(metadata, key) for key in _SIZES)
    even = None if d_model % heads else d_model // heads
    key_size = _whole(metadata, "attention.key_length", even)
    rotary_size = _whole(metadata, "rope.dimension_count", key_size)
    return DecoderConfig(
        vocab_size=_vocab_size(metadata),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_whole(metadata, "attention.head_count_kv", heads),
        d_model=d_model,
        d_ff=d_ff,
        key_size=key_size,
        value_size=_whole(metadata, "attention.value_length", even),
        max_length=length,
        position_embedding="rotary",
        rope_theta=_number(metadata, "rope.freq_base", 10_000.0),
        rope_fraction=rotary_size / key_size,
        rope_scaling=_rope_scaling(metadata, length),
        norm="rms",
        norm_eps=_number(metadata, "attention.layer_norm_rms_epsilon"),
        norm_placement="before",
        activation="silu",
        gated=True,
        tie_embeddings="output.weight" not in tensors,
        param_dtype=dtype,
        dtype=dtype,
    )


def _refuse_unknown(metadata: Mapping[str, Any]) -> None:
    # A key that is passed over may be the one that makes the logits wrong.
    for key, value in metadata.items():
        if not key.startswith("llama."):
            continue
        name = key.removeprefix("llama.")
        if name in _ONLY and (np.ndim(value) or value != _ONLY[name]):
            raise ValueError(
                f"{key} must be {_ONLY[name]}, got {in_one_line(value)}: anything else "
                "is not supported"
            )
        if name not in (*_SIZES, *_OTHERS, *_ONLY):
            raise ValueError(f"{in_one_line(key)} is not supported")


def _whole(metadata: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = metadata.get(f"llama.{name}", default)
    if value is None:
        raise FormatError(f"metadata 'llama.{name}' is missing")
    most = _MOST if name.endswith(("count", "count_kv")) else 2**32
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(
            f"llama.{name} must be a whole number from 1 to {most}, got "
            f"{in_one_line(value)}"
        )
    return value


def _number(
    metadata: Mapping[str, Any], name: str, default: float | None = None
) -> float:
    value = metadata.get(f"llama.{name}", default)
    if value is None:
        raise FormatError(f"metadata 'llama.{name}' is missing")
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise FormatError(
            f"llama.{name} must be a number > 0, got {in_one_line(value)}"
        )
    # The file holds float32; the shortest number that rounds to it is what was meant.
    return float(str(np.float32(value)))


def _vocab_size(metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else None
    size = _whole(metadata, "vocab_size", count)
    if count is not None and size != count:
        raise FormatError(
            f"llama.vocab_size is {size}, but tokenizer.ggml.tokens has {count}"
        )
    return size


def _rope_scaling(
    metadata: Mapping[str, Any], length: int
) -> LinearScaling | YarnScaling | None:
    given = "llama.rope.scaling.factor" in metadata
    kind = metadata.get("llama.rope.scaling.type", "linear" if given else "none")
    if kind == "none":
        return None
    if kind == "linear":
        return LinearScaling(factor=_number(metadata, "rope.scaling.factor"))
    if kind != "yarn":
        raise ValueError(
            "llama.rope.scaling.type must be 'none', 'linear' or 'yarn', got "
            f"{in_one_line(kind)}"
        )
    return YarnScaling(
        factor=_number(metadata, "rope.scaling.factor"),
        original_max_length=_whole(
            metadata, "rope.scaling.original_context_length", length
        ),
        beta_fast=_number(metadata, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=_number(metadata, "rope.scaling.yarn_beta_slow", 1.0),
    )
