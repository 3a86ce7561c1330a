"""GPT-2: learned positions, layer norms, biases everywhere, one fused projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor, linear, norm, table
from haiku_mqa.pretrained.families._layouts import Layout, stacked


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    heads = keys.count("n_head", 12)
    # They sum in another order or another dtype, and come to the same.
    keys.only("reorder_and_upcast_attn", False, True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    keys.only("n_ctx", keys.count("n_positions", 1024))
    return DecoderConfig(**decoder_fields(keys), num_kv_heads=heads)


def decoder_fields(keys: Keys, *, activation: str = "gelu_new") -> dict[str, Any]:
    """Returns the fields that all who follow GPT-2 say in the same keys.

    Args:
      keys: Of the file.
      activation: What the family takes where the file names none.
    """
    for name in OF_A_HEAD:
        keys.skip(name)
    d_model = keys.count("n_embd", 768)
    return {
        "vocab_size": keys.count("vocab_size", 50_257),
        "num_layers": keys.count("n_layer", 12, most=MOST_LAYERS),
        "num_heads": keys.count("n_head", 12),
        "d_model": d_model,
        "d_ff": keys.count("n_inner", 4 * d_model),
        "max_length": keys.count("n_positions", 1024),
        "position_embedding": "learned",
        "norm": "layer",
        "norm_eps": keys.number("layer_norm_epsilon", 1e-5),
        "activation": keys.choice("activation_function", ACTIVATIONS, activation),
        "gated": False,
        "attn_scale": None if keys.flag("scale_attn_weights", True) else 1.0,
        "embedding_dropout": keys.rate("embd_pdrop", 0.1),
        "attention_dropout": keys.rate("attn_pdrop", 0.1),
        "residual_dropout": keys.rate("resid_pdrop", 0.1),
        "tie_embeddings": keys.flag("tie_word_embeddings", True),
        **dict.fromkeys(_BIASES, True),
    }


_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias", "ff_bias")
# Of the heads that classify, which no language model has.
OF_A_HEAD = (
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
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
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "scale_attn_weights": config.attn_scale != 1.0,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.residual_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def decoder_tensors(layout: Layout, *, as_ours: bool) -> Sequence[Tensor]:
    """Returns the tensors of all who follow GPT-2.

    Args:
      layout: Of the fused projection's queries, keys and values.
      as_ours: Whether matrices of the layers lie ``[in, out]``.
    """
    theirs, ours = "transformer.h.{layer}", "decoder/layer_{layer}"
    attention = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]

    def layer(name: str, *paths: str, layout: Layout = stacked) -> Sequence[Tensor]:
        return linear(f"{theirs}.{name}", *paths, layout=layout, as_ours=as_ours)

    return (
        table("transformer.wte", "embed"),
        table("transformer.wpe", "position_embed"),
        *linear("lm_head", "unembed"),
        *norm("transformer.ln_f", "decoder/final_norm"),
        *norm(f"{theirs}.ln_1", f"{ours}/attention_norm"),
        *norm(f"{theirs}.ln_2", f"{ours}/feed_forward_norm"),
        *layer("attn.c_attn", *attention, layout=layout),
        *layer("attn.c_proj", f"{ours}/attention/linear"),
        *layer("mlp.c_fc", f"{ours}/feed_forward/up"),
        *layer("mlp.c_proj", f"{ours}/feed_forward/down"),
    )


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return decoder_tensors(stacked, as_ours=True)


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    prefix="transformer.",
    buffers=(".attn.bias", ".attn.masked_bias"),
)
