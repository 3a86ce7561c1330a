"""Gemma: Llama with scaled embeddings, and norms whose scale is stored less one."""

from __future__ import annotations

from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    fields = decoder_fields(keys, num_kv_heads=16, max_length=8192)
    # The first files called it by the name of the exact one.
    known = {**ACTIVATIONS, "gelu": ACTIVATIONS["gelu_pytorch_tanh"]}
    activation = keys.choice("hidden_act", known, "gelu_pytorch_tanh")
    # Versions of transformers differ in which of the two keys they look at.
    same = [name for name, meant in ACTIVATIONS.items() if meant == activation]
    keys.only("hidden_activation", None, *same)
    return DecoderConfig(**{**fields, "activation": activation})


def decoder_fields(keys: Keys, **defaults: Any) -> dict[str, Any]:
    """Returns the fields that all Gemmas say in the same keys.

    Args:
      keys: Of the file.
      **defaults: Of ``llama.decoder_fields``.
    """
    keys.only("use_bidirectional_attention", None, False)
    keys.skip("cache_implementation")
    fields = llama.decoder_fields(keys, **defaults)
    return {
        **fields,
        **llama.attention_biases(keys),
        "key_size": keys.count("head_dim", 256),
        "tie_embeddings": keys.flag("tie_word_embeddings", True),
        "norm": "rms_one_plus",
        "embedding_scale": fields["d_model"] ** 0.5,
    }


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **decoder_keys(config),
        "hidden_activation": ACTIVATION_NAMES[config.activation],
    }


def decoder_keys(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys that ``decoder_fields`` reads.

    Args:
      config: Of the decoder.
    """
    return {**llama.decoder_keys(config), "attention_bias": config.query_bias}


FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=llama.tensors,
    buffers=("rotary_emb.inv_freq",),
)
