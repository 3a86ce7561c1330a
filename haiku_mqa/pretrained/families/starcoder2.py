"""StarCoder 2: Llama with layer norms, biases, and a feed-forward without gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family, Tensor, linear


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    # Published files still hold the keys of an earlier code, which chose by them.
    for name, only in _OF_AN_EARLIER_CODE.items():
        keys.only(name, *only)
    for name in ("activation_function", "layer_norm_epsilon"):
        keys.skip(name)
    fields = llama.decoder_fields(
        keys,
        num_kv_heads=2,
        max_length=4096,
        norm_eps=("norm_epsilon", 1e-5),
        activation="gelu_pytorch_tanh",
        tied=True,
    )
    return DecoderConfig(
        **fields,
        norm="layer",
        gated=False,
        sliding_window=keys.count_or_none("sliding_window", None),
        embedding_dropout=keys.rate("embedding_dropout", 0.0),
        residual_dropout=keys.rate("residual_dropout", 0.0),
        **dict.fromkeys(_BIASES, keys.flag("use_bias", True)),
    )


_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias", "ff_bias")
_OF_AN_EARLIER_CODE = {
    "attention_softmax_in_fp32": (False, True),
    "mlp_type": ("default",),
    "norm_type": ("layer_norm",),
    "scale_attention_softmax_in_fp32": (False, True),
    "scale_attn_weights": (True,),
}


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **llama.decoder_keys(config, norm_eps="norm_epsilon"),
        "sliding_window": config.windows[0],
        "embedding_dropout": config.embedding_dropout,
        "residual_dropout": config.residual_dropout,
        "use_bias": config.query_bias,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "model.layers.{layer}.mlp", "decoder/layer_{layer}/feed_forward"
    return (
        *llama.stream_tensors(),
        *llama.attention_tensors(),
        *linear(f"{theirs}.c_fc", f"{ours}/up"),
        *linear(f"{theirs}.c_proj", f"{ours}/down"),
    )


FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
