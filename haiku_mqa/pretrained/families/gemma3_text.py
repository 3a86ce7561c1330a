"""Gemma 3, which reads text alone: layers with a window have positions of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families import gemma2, llama
from haiku_mqa.pretrained.families._family import Family, Tensor
from haiku_mqa.pretrained.families._layer_types import (
    FULL,
    SLIDING,
    read_layer_types,
    windows,
)
from haiku_mqa.pretrained.families._rotary import (
    read_rotary,
    read_rotary_inside,
    scaling_keys,
)

_GLOBAL, _LOCAL = 1_000_000.0, 10_000.0


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    keys.only("attn_logit_softcapping", None)  # they read it, and do not cap
    return DecoderConfig(
        **gemma2.decoder_fields(keys, max_length=131_072, rotary=_read_rotary),
        qk_norm=True,
        final_logit_softcap=keys.number_or_none("final_logit_softcapping", None),
        sliding_window=windows(_kinds(keys), keys.count("sliding_window", 4096)),
    )


def _kinds(keys: Keys) -> list[str]:
    layers = keys.count("num_hidden_layers", most=MOST_LAYERS)
    # Before layer_types there was how often one sees everything.
    every = keys.count("sliding_window_pattern", 6)
    keys.skip("_sliding_window_pattern")
    default = [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]
    return read_layer_types(keys, default)


def _read_rotary(keys: Keys, max_length: int) -> dict[str, Any]:
    local_theta = keys.number("rope_local_base_freq", _LOCAL)
    both = keys.inside("rope_parameters")
    if both is None:
        everywhere = read_rotary(keys, max_length, theta=_GLOBAL)
    else:
        keys.only("rope_scaling", None)
        theta = keys.number("rope_theta", _GLOBAL)
        everywhere = read_rotary_inside(both.inside(FULL), max_length, theta)
        local = both.inside(SLIDING)
        if local is not None:
            local.only("rope_type", "default")
            local_theta = local.number("rope_theta", local_theta)
            local.finish()
        both.finish()
    near = {"rope_theta": local_theta, "rope_scaling": None}
    of_layers = [near if kind == SLIDING else everywhere for kind in _kinds(keys)]
    return {name: tuple(layer[name] for layer in of_layers) for name in near}


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    keys = gemma2.decoder_keys(config)
    rotaries = dict(zip(keys["layer_types"], config.rotaries, strict=True))
    theta, scaling = rotaries.get(FULL) or (_GLOBAL, None)
    local_theta, _ = rotaries.get(SLIDING) or (_LOCAL, None)
    return {
        **keys,
        "rope_theta": theta,
        "rope_scaling": scaling_keys(scaling),
        "rope_local_base_freq": local_theta,
        "final_logit_softcapping": config.final_logit_softcap,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return llama.decoder_tensors({**gemma2.BOTH_NORMS, **llama.QK_NORMS})


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
)
