"""GLM 4 (0414): norms before and after each part, rotary pairs that are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family, Tensor, norm
from haiku_mqa.pretrained.families._layouts import interleaved
from haiku_mqa.pretrained.families.phi3 import feed_forward_tensors


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = llama.decoder_fields(
        keys,
        num_kv_heads=2,
        key_size=128,
        max_length=131_072,
        norm_eps=("rms_norm_eps", 1.5625e-7),
        fraction=0.5,
    )
    return DecoderConfig(
        **fields,
        norm_placement="both",
        **dict.fromkeys(_BIASES, keys.flag("attention_bias", True)),
    )


_BIASES = ("query_bias", "key_bias", "value_bias")


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **llama.decoder_keys(config, in_part=True),
        "attention_bias": config.query_bias,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "model.layers.{layer}", "decoder/layer_{layer}"
    return (
        *llama.stream_tensors(),
        *norm(f"{theirs}.post_self_attn_layernorm", f"{ours}/attention_post_norm"),
        *norm(f"{theirs}.post_mlp_layernorm", f"{ours}/feed_forward_post_norm"),
        *llama.attention_tensors(interleaved),
        *feed_forward_tensors(),
    )


FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
