"""Cohere (Command R): parallel parts after one norm, and a factor on the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family, Tensor
from haiku_mqa.pretrained.families._layouts import interleaved, interleaved_by_head


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    keys.skip("model_max_length")  # which no code reads
    fields = llama.decoder_fields(
        keys,
        max_length=8192,
        norm_eps=("layer_norm_eps", 1e-5),
        tied=True,
        theta=500_000.0,
    )
    normed = keys.flag("use_qk_norm", False)
    return DecoderConfig(
        **fields,
        norm="layer",
        norm_bias=False,
        block_layout="parallel_one_norm",
        qk_norm=normed,
        qk_norm_span="own_head" if normed else "head",
        logit_scale=keys.number("logit_scale", 0.0625),
        **dict.fromkeys(_BIASES, keys.flag("attention_bias", False)),
    )


_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias")


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **llama.decoder_keys(config, norm_eps="layer_norm_eps"),
        "attention_bias": config.query_bias,
        "logit_scale": config.logit_scale,
        "use_qk_norm": config.qk_norm,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "model.layers.{layer}.self_attn", "decoder/layer_{layer}/attention"

    def scales(name: str, of: str) -> Tensor:
        path = f"{ours}/{of}_norm/scale"
        return Tensor(f"{theirs}.{name}.weight", (path,), interleaved_by_head)

    return (
        *llama.stream_tensors(),
        *llama.attention_tensors(interleaved),
        scales("q_norm", "query"),
        scales("k_norm", "key"),
        *llama.feed_forward_tensors(),
    )


FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
