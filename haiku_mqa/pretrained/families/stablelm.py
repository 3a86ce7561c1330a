"""StableLM: Llama with layer norms, and heads rotated in part."""

from __future__ import annotations

from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    keys.only("hidden_dropout", 0, 0.0)  # of the feed-forward alone
    keys.only("qk_layernorm", False)  # a tensor for each head
    fields = llama.decoder_fields(
        keys,
        num_kv_heads=32,
        max_length=4096,
        norm_eps=("layer_norm_eps", 1e-5),
        fraction=0.25,
    )
    keys.only("head_dim", fields["d_model"] // fields["num_heads"])
    parallel = keys.flag("use_parallel_residual", False)
    return DecoderConfig(
        **fields,
        norm="layer",
        block_layout="parallel_one_norm" if parallel else "sequential",
        **dict.fromkeys(_BIASES, keys.flag("use_qkv_bias", False)),
    )


_BIASES = ("query_bias", "key_bias", "value_bias")


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **llama.decoder_keys(config, norm_eps="layer_norm_eps", in_part=True),
        "use_parallel_residual": config.block_layout == "parallel_one_norm",
        "use_qkv_bias": config.query_bias,
    }


FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=llama.tensors,
    buffers=("rotary_emb.inv_freq",),
)
