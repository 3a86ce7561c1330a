"""Qwen 2 and 2.5: Llama with biases where queries, keys and values are made."""

from __future__ import annotations

from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import unknown_name
from haiku_mqa.pretrained.families._family import Family
from haiku_mqa.pretrained.families._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families.llama import decoder_fields, decoder_keys, tensors

FULL, SLIDING = "full_attention", "sliding_attention"


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = decoder_fields(keys, num_kv_heads=32, max_length=32_768)
    return DecoderConfig(
        **fields,
        query_bias=True,
        key_bias=True,
        value_bias=True,
        sliding_window=_windows(keys, fields["num_layers"]),
    )


def _windows(keys: Keys, num_layers: int) -> tuple[int | None, ...] | None:
    window = keys.count_or_none("sliding_window", 4096)
    first = keys.whole("max_window_layers", 28, most=MOST_LAYERS)
    # Before layer_types there was a number of layers that see everything.
    kinds = keys.texts("layer_types", num_layers) or [
        SLIDING if layer >= first else FULL for layer in range(num_layers)
    ]
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise unknown_name("layer_types", kind, (FULL, SLIDING))
    if not keys.flag("use_sliding_window", False) or window is None:
        return None
    windows = tuple(window if kind == SLIDING else None for kind in kinds)
    return windows if any(windows) else None


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    sliding = [window for window in config.windows if window is not None]
    kinds = [FULL if window is None else SLIDING for window in config.windows]
    return {
        **decoder_keys(config),
        "use_sliding_window": bool(sliding),
        "sliding_window": sliding[0] if sliding else None,
        "layer_types": kinds,
        "max_window_layers": kinds.index(SLIDING) if sliding else config.num_layers,
    }


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
