"""Llama, from the first to 3.x, and whatever else is published in its form."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import MOST_LAYERS, Keys
from haiku_mqa.pretrained.families._activations import ACTIVATION_NAMES, ACTIVATIONS
from haiku_mqa.pretrained.families._family import Family, Tensor, linear, norm, table
from haiku_mqa.pretrained.families._layouts import Layout, stacked
from haiku_mqa.pretrained.families._rotary import (
    KINDS,
    NAMES,
    read_rotary,
    write_rotary,
)


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
    key_size: int | None = None,
    max_length: int = 2048,
    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    activation: str = "silu",
    tied: bool = False,
    theta: float = 10_000.0,
    fraction: float | None = None,
    kinds: Sequence[str] = KINDS,
    original: int | None = None,
    rotary: Callable[[Keys, int], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Returns the fields that all who follow Llama say in the same keys.

    Args:
      keys: Of the file.
      num_kv_heads: What the family takes where the file is silent; as many as there
        are query heads if ``None``.
      key_size: The same of the size of a head; ``hidden_size`` by heads if ``None``.
      max_length: The same of positions.
      norm_eps: The family's key for it, and the same of it.
      activation: The same of the activation.
      tied: The same of whether the output matrix is the embedding's.
      theta: The same of the base of rotary wavelengths.
      fraction: The same of the part of a head that is rotated; ``None`` for families
        that rotate whole heads, and have no key for it.
      kinds: Of rotary scaling, those that the family has.
      original: Context of the first training, where the family says it outside of the
        scaling.
      rotary: What reads rotary positions, given the length, where the family has keys
        of its own for them; the four before do not count then.
    """
    heads, d_model = keys.count("num_attention_heads"), keys.count("hidden_size")
    max_length = keys.count("max_position_embeddings", max_length)
    key_size = keys.count("head_dim", key_size or max(1, d_model // heads))
    read = rotary or functools.partial(
        read_rotary,
        theta=theta,
        key_size=None if fraction is None else key_size,
        fraction=fraction or 1.0,
        kinds=kinds,
        original=original,
    )
    return {
        "vocab_size": keys.count("vocab_size"),
        "num_layers": keys.count("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": keys.count("num_key_value_heads", num_kv_heads or heads),
        "d_model": d_model,
        "d_ff": keys.count("intermediate_size"),
        "key_size": key_size,
        "max_length": max_length,
        "norm_eps": keys.number(*norm_eps),
        "activation": keys.choice("hidden_act", ACTIVATIONS, activation),
        "attention_dropout": keys.rate("attention_dropout", 0.0),
        "tie_embeddings": keys.flag("tie_word_embeddings", tied),
        **read(keys, max_length),
    }


def decoder_keys(
    config: DecoderConfig, *, norm_eps: str = "rms_norm_eps", in_part: bool = False
) -> dict[str, Any]:
    """Returns the keys that ``decoder_fields`` reads.

    Args:
      config: Of the decoder.
      norm_eps: The family's key for it.
      in_part: Whether the family has a key for how much of a head is rotated.
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
        norm_eps: config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rotary(config, NAMES if in_part else None),
    }


NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}
QK_NORMS = {
    "self_attn.q_norm": "attention/query_norm",
    "self_attn.k_norm": "attention/key_norm",
}
_THEIRS, _OURS = "model.layers.{layer}", "decoder/layer_{layer}"


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    return decoder_tensors(NORMS)


def decoder_tensors(norms: Mapping[str, str]) -> Sequence[Tensor]:
    """Returns the tensors of all who follow Llama.

    Args:
      norms: Their names for the norms of a layer, to ours.
    """
    return (*stream_tensors(norms), *attention_tensors(), *feed_forward_tensors())


def stream_tensors(norms: Mapping[str, str] = NORMS) -> Sequence[Tensor]:
    """Returns those of embeddings, output matrix and norms.

    Args:
      norms: Their names for the norms of a layer, to ours.
    """
    of_layers = (norm(f"{_THEIRS}.{name}", f"{_OURS}/{norms[name]}") for name in norms)
    return (
        table("model.embed_tokens", "embed"),
        *linear("lm_head", "unembed"),
        *norm("model.norm", "decoder/final_norm"),
        *itertools.chain.from_iterable(of_layers),
    )


def attention_tensors(rotated: Layout = stacked) -> Sequence[Tensor]:
    """Returns those of attention.

    Args:
      rotated: The layout of what is rotated, queries and keys.
    """
    theirs, ours = f"{_THEIRS}.self_attn", f"{_OURS}/attention"
    return (
        *linear(f"{theirs}.q_proj", f"{ours}/query", layout=rotated),
        *linear(f"{theirs}.k_proj", f"{ours}/key", layout=rotated),
        *linear(f"{theirs}.v_proj", f"{ours}/value"),
        *linear(f"{theirs}.o_proj", f"{ours}/linear"),
    )


def feed_forward_tensors() -> Sequence[Tensor]:
    """Returns those of the feed-forward."""
    theirs, ours = f"{_THEIRS}.mlp", f"{_OURS}/feed_forward"
    return (
        *linear(f"{theirs}.gate_proj", f"{ours}/gate"),
        *linear(f"{theirs}.up_proj", f"{ours}/up"),
        *linear(f"{theirs}.down_proj", f"{ours}/down"),
    )


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
