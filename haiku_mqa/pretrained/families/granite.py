"""Granite: Llama with a factor on embeddings, attention, residuals and logits."""

from __future__ import annotations

from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    return DecoderConfig(
        **llama.decoder_fields(keys),
        **llama.attention_biases(keys),
        ff_bias=keys.flag("mlp_bias", False),
        attn_scale=keys.number("attention_multiplier", 1.0),
        embedding_scale=keys.number("embedding_multiplier", 1.0),
        residual_scale=keys.number("residual_multiplier", 1.0),
        # They divide. What is divided by twice comes back as it was.
        logit_scale=1 / keys.number("logits_scaling", 1.0),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    scale = config.key_size**-0.5 if config.attn_scale is None else config.attn_scale
    return {
        **llama.decoder_keys(config),
        "attention_bias": config.query_bias,
        "mlp_bias": config.ff_bias,
        "attention_multiplier": scale,
        "embedding_multiplier": config.embedding_scale or 1.0,
        "residual_multiplier": config.residual_scale or 1.0,
        "logits_scaling": 1 / (config.logit_scale or 1.0),
    }


FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=llama.tensors,
)
