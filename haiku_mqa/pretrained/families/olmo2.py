"""OLMo 2: norms after each part alone, and of queries and keys as one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family, Tensor

_NORMS = {
    "post_attention_layernorm": "attention_post_norm",
    "post_feedforward_layernorm": "feed_forward_post_norm",
}


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = llama.decoder_fields(keys)
    fields["norm_eps"] = keys.number("rms_norm_eps", 1e-5)
    return DecoderConfig(
        **fields,
        **llama.attention_biases(keys),
        norm_placement="after",
        qk_norm=True,
        qk_norm_span="all_heads",
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {**llama.decoder_keys(config), "attention_bias": config.query_bias}


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return llama.decoder_tensors({**_NORMS, **llama.QK_NORMS})


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
)
