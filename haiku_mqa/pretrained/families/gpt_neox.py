"""GPT-NeoX (Pythia, Dolly, RedPajama): parallel parts, heads rotated in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor, linear, norm, table
from haiku_mqa.pretrained.families._layouts import by_groups
from haiku_mqa.pretrained.families._rotary import (
    FRACTION,
    THETA,
    read_rotary,
    write_rotary,
)

_ROTARY = ("rotary_emb_base", "rotary_pct")


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    keys.skip("classifier_dropout")  # of a head that no language model has
    d_model, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    max_length = keys.count("max_position_embeddings", 2048)
    dropout = keys.rate("hidden_dropout", 0.0)
    parallel = keys.flag("use_parallel_residual", True)
    # Some versions wrote both down a second time, under the names of others.
    theta, fraction = keys.number(_ROTARY[0], 1e4), keys.number(_ROTARY[1], 0.25)
    keys.only(THETA, theta, int(theta))
    keys.only(FRACTION, fraction)
    return DecoderConfig(
        vocab_size=keys.count("vocab_size"),
        num_layers=keys.count("num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        d_model=d_model,
        d_ff=keys.count("intermediate_size"),
        max_length=max_length,
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        block_layout="parallel" if parallel else "sequential",
        activation=keys.choice("hidden_act", ACTIVATIONS, "gelu"),
        gated=False,
        ff_bias=True,
        embedding_dropout=dropout,
        attention_dropout=keys.rate("attention_dropout", 0.0),
        residual_dropout=dropout,
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        **dict.fromkeys(_BIASES, keys.flag("attention_bias", True)),
        **read_rotary(
            keys,
            max_length,
            key_size=max(1, d_model // heads),
            fraction=0.25,
            names=_ROTARY,
        ),
    )


_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias")


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.block_layout == "parallel",
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.query_bias,
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": config.residual_dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rotary(config, _ROTARY),
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "gpt_neox.layers.{layer}", "decoder/layer_{layer}"
    attention = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
    return (
        table("gpt_neox.embed_in", "embed"),
        *linear("embed_out", "unembed"),
        *norm("gpt_neox.final_layer_norm", "decoder/final_norm"),
        *norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm"),
        *norm(f"{theirs}.post_attention_layernorm", f"{ours}/feed_forward_norm"),
        *linear(f"{theirs}.attention.query_key_value", *attention, layout=by_groups),
        *linear(f"{theirs}.attention.dense", f"{ours}/attention/linear"),
        *linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}/feed_forward/up"),
        *linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}/feed_forward/down"),
    )


FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    prefix="gpt_neox.",
    buffers=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)
