"""Qwen 2 and 2.5: Llama with biases where queries, keys and values are made."""

from __future__ import annotations

from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._family import Family
from haiku_mqa.pretrained.families._layer_types import (
    FULL,
    SLIDING,
    read_layer_types,
    windows,
    write_layer_types,
)
from haiku_mqa.pretrained.families.llama import decoder_fields, decoder_keys, tensors


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = decoder_fields(keys, num_kv_heads=32, max_length=32_768)
    return DecoderConfig(
        **fields,
        query_bias=True,
        key_bias=True,
        value_bias=True,
        sliding_window=read_windows(keys, fields["num_layers"]),
    )


def read_windows(keys: Keys, num_layers: int) -> tuple[int | None, ...] | None:
    """Returns the window of each layer, as the keys of all Qwens say them.

    Args:
      keys: Of the file.
      num_layers: Of the decoder.
    """
    window = keys.count_or_none("sliding_window", 4096)
    first = keys.whole("max_window_layers", 28, most=MOST_LAYERS)
    # Before layer_types there was a number of layers that see everything.
    kinds = read_layer_types(
        keys, [SLIDING if layer >= first else FULL for layer in range(num_layers)]
    )
    is_used = keys.flag("use_sliding_window", False)
    return windows(kinds, window) if is_used else None


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {**decoder_keys(config), **write_windows(config)}


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys that ``read_windows`` reads.

    Args:
      config: Of the decoder.
    """
    keys = write_layer_types(config)
    kinds, window = keys["layer_types"], keys["sliding_window"]
    first = config.num_layers if window is None else kinds.index(SLIDING)
    return {**keys, "use_sliding_window": bool(window), "max_window_layers": first}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
