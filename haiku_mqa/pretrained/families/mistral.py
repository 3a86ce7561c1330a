"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families._family import Family
from haiku_mqa.pretrained.families.llama import decoder_fields, decoder_keys, tensors


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    return DecoderConfig(
        **decoder_fields(keys, num_kv_heads=8, max_length=131_072),
        sliding_window=keys.count_or_none("sliding_window", 4096),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {**decoder_keys(config), "sliding_window": config.windows[0]}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
