"""Qwen 3: Llama with normalised queries and keys, and heads of a size of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama, qwen2
from haiku_mqa.pretrained.families._family import Family, Tensor


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = llama.decoder_fields(keys, num_kv_heads=32, max_length=32_768)
    fields["key_size"] = keys.count("head_dim", 128)
    return DecoderConfig(
        **fields,
        **llama.attention_biases(keys),
        qk_norm=True,
        sliding_window=qwen2.read_windows(keys, fields["num_layers"]),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **llama.decoder_keys(config),
        **qwen2.write_windows(config),
        "attention_bias": config.query_bias,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return llama.decoder_tensors({**llama.NORMS, **llama.QK_NORMS})


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
)
