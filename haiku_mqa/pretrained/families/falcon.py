"""Falcon: parallel blocks, with one key/value head (7B) or several (40B and later)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import BlockLayout, DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor, linear, norm, table
from haiku_mqa.pretrained.families._layouts import by_groups
from haiku_mqa.pretrained.families._rotary import read_rotary, write_rotary


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    keys.only("alibi", False)  # theirs are rounded to bfloat16, and scaled
    d_model, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    max_length = keys.count("max_position_embeddings", 2048)
    grouped = keys.flag("new_decoder_architecture", False)
    return DecoderConfig(
        vocab_size=keys.count("vocab_size"),
        num_layers=keys.count("num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=_kv_heads(keys, grouped, heads),
        d_model=d_model,
        d_ff=keys.count("ffn_hidden_size", 4 * d_model),
        max_length=max_length,
        norm="layer",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        block_layout=_block_layout(keys, grouped),
        activation=keys.choice("activation", ACTIVATIONS, "gelu"),
        gated=False,
        attention_dropout=keys.rate("attention_dropout", 0.0),
        residual_dropout=keys.rate("hidden_dropout", 0.0),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        **dict.fromkeys(_BIASES, keys.flag("bias", False)),
        **read_rotary(keys, max_length),
    )


_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias", "ff_bias")


def _kv_heads(keys: Keys, grouped: bool, heads: int) -> int:
    one = keys.flag("multi_query", True)
    stated = keys.count("num_kv_heads", heads)
    if grouped:
        return stated
    return 1 if one else heads


def _block_layout(keys: Keys, grouped: bool) -> BlockLayout:
    norms = keys.count("num_ln_in_parallel_attn", 2 if grouped else 1, most=2)
    if grouped:
        keys.only("parallel_attn", True)
        return "parallel" if norms == 2 else "parallel_one_norm"
    keys.only("num_ln_in_parallel_attn", None, 1)
    return "parallel_one_norm" if keys.flag("parallel_attn", True) else "sequential"


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    sequential = config.block_layout == "sequential"
    whole = config.num_kv_heads in (1, config.num_heads)
    grouped = config.block_layout == "parallel" or not (whole or sequential)
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "multi_query": config.num_kv_heads == 1,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": 2 if config.block_layout == "parallel" else 1,
        "parallel_attn": not sequential,
        "hidden_size": config.d_model,
        "ffn_hidden_size": config.d_ff,
        "max_position_embeddings": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "activation": ACTIVATION_NAMES[config.activation],
        "bias": config.query_bias,
        "alibi": False,
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": config.residual_dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rotary(config),
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "transformer.h.{layer}", "decoder/layer_{layer}"
    attention = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
    two_norms = config.block_layout == "parallel"
    before, beside = ("ln_attn", "ln_mlp") if two_norms else _NORMS
    return (
        table("transformer.word_embeddings", "embed"),
        *linear("lm_head", "unembed"),
        *norm("transformer.ln_f", "decoder/final_norm"),
        *norm(f"{theirs}.{before}", f"{ours}/attention_norm"),
        *norm(f"{theirs}.{beside}", f"{ours}/feed_forward_norm"),
        *linear(
            f"{theirs}.self_attention.query_key_value", *attention, layout=by_groups
        ),
        *linear(f"{theirs}.self_attention.dense", f"{ours}/attention/linear"),
        *linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}/feed_forward/up"),
        *linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}/feed_forward/down"),
    )


_NORMS = ("input_layernorm", "post_attention_layernorm")

FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    prefix="transformer.",
)
