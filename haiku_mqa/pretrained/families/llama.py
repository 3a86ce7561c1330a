"""Llama, from the first to 3.x, and whatever else is published in its form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor, linear, norm, table
from haiku_mqa.pretrained.families._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._rotary import read_rotary, write_rotary


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    keys.only("pretraining_tp", 1)  # others only change the order of sums
    return DecoderConfig(
        **decoder_fields(keys),
        **attention_biases(keys),
        ff_bias=keys.flag("mlp_bias", False),
    )


def attention_biases(keys: Keys) -> dict[str, Any]:
    """Returns the fields that ``attention_bias`` sets all alike.

    Args:
      keys: Of the file.
    """
    names = ("query_bias", "key_bias", "value_bias", "output_bias")
    return dict.fromkeys(names, keys.flag("attention_bias", False))


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        **decoder_keys(config),
        "attention_bias": config.query_bias,
        "mlp_bias": config.ff_bias,
    }


def decoder_fields(
    keys: Keys,
    *,
    num_kv_heads: int | None = None,
    max_length: int = 2048,
    rotary: Callable[[Keys, int], dict[str, Any]] = read_rotary,
) -> dict[str, Any]:
    """Returns the fields that all who follow Llama say in the same keys.

    Args:
      keys: Of the file.
      num_kv_heads: What the family takes where the file is silent; as many as there
        are query heads if ``None``.
      max_length: The same of positions.
      rotary: What reads rotary positions out of the file, given the length.
    """
    heads, d_model = keys.count("num_attention_heads"), keys.count("hidden_size")
    max_length = keys.count("max_position_embeddings", max_length)
    return {
        "vocab_size": keys.count("vocab_size"),
        "num_layers": keys.count("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": keys.count("num_key_value_heads", num_kv_heads or heads),
        "d_model": d_model,
        "d_ff": keys.count("intermediate_size"),
        "key_size": keys.count("head_dim", max(1, d_model // heads)),
        "max_length": max_length,
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "activation": keys.choice("hidden_act", ACTIVATIONS, "silu"),
        "attention_dropout": keys.rate("attention_dropout", 0.0),
        "tie_embeddings": keys.flag("tie_word_embeddings", False),
        **rotary(keys, max_length),
    }


def decoder_keys(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys that ``decoder_fields`` reads.

    Args:
      config: Of the decoder.
    """
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "head_dim": config.key_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rotary(config),
    }


NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}
QK_NORMS = {
    "self_attn.q_norm": "attention/query_norm",
    "self_attn.k_norm": "attention/key_norm",
}


def decoder_tensors(norms: Mapping[str, str]) -> Sequence[Tensor]:
    """Returns the tensors of all who follow Llama.

    Args:
      norms: Their names for the norms of a layer, to ours.
    """
    theirs, ours = "model.layers.{layer}", "decoder/layer_{layer}"
    return (
        table("model.embed_tokens", "embed"),
        *linear("lm_head", "unembed"),
        *norm("model.norm", "decoder/final_norm"),
        *itertools.chain.from_iterable(
            norm(f"{theirs}.{name}", f"{ours}/{norms[name]}") for name in norms
        ),
        *linear(f"{theirs}.self_attn.q_proj", f"{ours}/attention/query"),
        *linear(f"{theirs}.self_attn.k_proj", f"{ours}/attention/key"),
        *linear(f"{theirs}.self_attn.v_proj", f"{ours}/attention/value"),
        *linear(f"{theirs}.self_attn.o_proj", f"{ours}/attention/linear"),
        *linear(f"{theirs}.mlp.gate_proj", f"{ours}/feed_forward/gate"),
        *linear(f"{theirs}.mlp.up_proj", f"{ours}/feed_forward/up"),
        *linear(f"{theirs}.mlp.down_proj", f"{ours}/feed_forward/down"),
    )


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return decoder_tensors(NORMS)


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
