"""Gemma 2: windows in every other layer, capped logits, norms on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import gemma, llama
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor
from haiku_mqa.pretrained.families._layer_types import (
    FULL,
    SLIDING,
    read_layer_types,
    windows,
    write_layer_types,
)

BOTH_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "feed_forward_norm",
    "post_feedforward_layernorm": "feed_forward_post_norm",
}


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = decoder_fields(keys, max_length=8192)
    layers = range(fields["num_layers"])
    kinds = read_layer_types(keys, [FULL if i % 2 else SLIDING for i in layers])
    return DecoderConfig(
        **fields,
        attn_logit_softcap=keys.number_or_none("attn_logit_softcapping", 50.0),
        final_logit_softcap=keys.number_or_none("final_logit_softcapping", 30.0),
        sliding_window=windows(kinds, keys.count("sliding_window", 4096)),
    )


def decoder_fields(keys: Keys, **defaults: Any) -> dict[str, Any]:
    """Returns the fields that Gemma 2 and 3 say in the same keys.

    Args:
      keys: Of the file.
      **defaults: Of ``llama.decoder_fields``.
    """
    fields = gemma.decoder_fields(keys, num_kv_heads=4, **defaults)
    activation = keys.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    return {
        **fields,
        "activation": activation,  # whatever hidden_act says
        "attn_scale": keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "norm_placement": "both",
    }


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **decoder_keys(config),
        "attn_logit_softcapping": config.attn_logit_softcap,
        "final_logit_softcapping": config.final_logit_softcap,
    }


def decoder_keys(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys that ``decoder_fields`` reads, and those of the windows.

    Args:
      config: Of the decoder.
    """
    kinds = write_layer_types(config)
    scale = config.key_size**-0.5 if config.attn_scale is None else config.attn_scale
    return {
        **gemma.decoder_keys(config),
        "hidden_activation": ACTIVATION_NAMES[config.activation],
        "query_pre_attn_scalar": _scalar(scale),
        "layer_types": kinds["layer_types"],
        # They ask for one even where no layer has it.
        "sliding_window": kinds["sliding_window"] or config.max_length,
    }


def _scalar(scale: float) -> int:
    """Returns what ``query_pre_attn_scalar`` is for a factor; they take whole ones."""
    return max(1, round(scale**-2))


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return llama.decoder_tensors(BOTH_NORMS)


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
)
