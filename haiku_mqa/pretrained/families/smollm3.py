"""SmolLM3: Llama, and every so many layers one without rotary positions."""

from __future__ import annotations

import functools
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family
from haiku_mqa.pretrained.families._layer_types import (
    FULL,
    SLIDING,
    read_layer_types,
    windows,
    write_layer_types,
)
from haiku_mqa.pretrained.families._rotary import read_rotary


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    for name in ("pretraining_tp", "max_window_layers"):  # of other families
        keys.skip(name)
    rotary = functools.partial(read_rotary, theta=2_000_000.0)
    fields = llama.decoder_fields(
        keys, num_kv_heads=4, max_length=32_768, rotary=rotary
    )
    turned, theta = _turned(keys), fields["rope_theta"]
    fields["rope_theta"] = tuple(theta if turns else None for turns in turned)
    fields["tie_embeddings"] = keys.flag("tie_word_embeddings", True)
    return DecoderConfig(
        **fields,
        **llama.attention_biases(keys),
        ff_bias=keys.flag("mlp_bias", False),
        sliding_window=_windows(keys, turned),
    )


def _turned(keys: Keys) -> list[int]:
    """Returns 1 for each layer with rotary positions, and 0 for one without."""
    layers = keys.count("num_hidden_layers", most=MOST_LAYERS)
    every = keys.count("no_rope_layer_interval", 4)
    default = [int((layer + 1) % every != 0) for layer in range(layers)]
    return keys.bits("no_rope_layers", layers) or default


def _windows(keys: Keys, turned: list[int]) -> tuple[int | None, ...] | None:
    window = keys.count_or_none("sliding_window", None)
    slides = keys.flag("use_sliding_window", False) and window is not None
    default = [FULL if turns or not slides else SLIDING for turns in turned]
    kinds = read_layer_types(keys, default)
    if SLIDING in kinds:
        # Of their ways to attend, some would follow the one key, some the other.
        keys.only("use_sliding_window", True)
    return windows(kinds, window)


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **llama.decoder_keys(config),
        **write_layer_types(config),
        "use_sliding_window": any(config.windows),
        "no_rope_layers": [int(rotary is not None) for rotary in config.rotaries],
        "attention_bias": config.query_bias,
        "mlp_bias": config.ff_bias,
    }


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=llama.tensors,
)
