"""GPT-J: parallel parts after one norm, rotary pairs that are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor, linear, norm, table
from haiku_mqa.pretrained.families._layouts import interleaved
from haiku_mqa.pretrained.families.gpt2 import OF_A_HEAD


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    # Published files still hold keys of an earlier code, which only knew these.
    keys.only("rotary", True)
    keys.only("scale_attn_weights", True)
    for name in ("gradient_checkpointing", *OF_A_HEAD):
        keys.skip(name)
    d_model, heads = keys.count("n_embd", 4096), keys.count("n_head", 16)
    turned = keys.count_or_none("rotary_dim", 64) or d_model
    return DecoderConfig(
        vocab_size=keys.count("vocab_size", 50_400),
        num_layers=keys.count("n_layer", 28, most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        d_model=d_model,
        d_ff=keys.count("n_inner", 4 * d_model),
        max_length=keys.count("n_positions", 2048),
        rope_fraction=turned / max(1, d_model // heads),
        norm="layer",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        block_layout="parallel_one_norm",
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
        gated=False,
        ff_bias=True,
        embedding_dropout=keys.rate("embd_pdrop", 0.0),
        attention_dropout=keys.rate("attn_pdrop", 0.0),
        residual_dropout=keys.rate("resid_pdrop", 0.0),
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        logit_bias=True,
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "rotary_dim": config.rotary_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "transformer.h.{layer}", "decoder/layer_{layer}"
    attention = f"{ours}/attention"
    return (
        table("transformer.wte", "embed"),
        *linear("lm_head", "unembed"),
        *norm("transformer.ln_f", "decoder/final_norm"),
        *norm(f"{theirs}.ln_1", f"{ours}/attention_norm"),
        *linear(f"{theirs}.attn.q_proj", f"{attention}/query", layout=interleaved),
        *linear(f"{theirs}.attn.k_proj", f"{attention}/key", layout=interleaved),
        *linear(f"{theirs}.attn.v_proj", f"{attention}/value"),
        *linear(f"{theirs}.attn.out_proj", f"{attention}/linear"),
        *linear(f"{theirs}.mlp.fc_in", f"{ours}/feed_forward/up"),
        *linear(f"{theirs}.mlp.fc_out", f"{ours}/feed_forward/down"),
    )


FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    prefix="transformer.",
    buffers=(".attn.bias", ".attn.masked_bias", "embed_positions"),
)
