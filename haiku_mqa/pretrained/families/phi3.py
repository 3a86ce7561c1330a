"""Phi 3 and 4: Llama with queries, keys and values in one matrix, gate and up too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families import llama
from haiku_mqa.pretrained.families._family import Family, Tensor, linear
from haiku_mqa.pretrained.families._rotary import ORIGINAL
from haiku_mqa.rope_scaling import LongRopeScaling


def read_config(keys: Keys) -> DecoderConfig:
    """Returns the config that the keys of a ``config.json`` mean."""
    for name in ("attention_bias", "mlp_bias"):
        keys.only(name, False)
    keys.skip("embd_pdrop")  # which drops nothing where it is read
    fields = llama.decoder_fields(
        keys,
        max_length=4096,
        norm_eps=("rms_norm_eps", 1e-5),
        fraction=1.0,
        kinds=("default", "longrope", "su"),  # the last is an earlier name
        original=keys.count(ORIGINAL, 4096),
    )
    return DecoderConfig(
        **fields,
        sliding_window=keys.count_or_none("sliding_window", None),
        residual_dropout=keys.rate("resid_pdrop", 0.0),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the keys of a ``config.json`` that mean a config."""
    scaling = next((r[1] for r in config.rotaries if r), None)
    trained = (
        scaling.original_max_length if isinstance(scaling, LongRopeScaling) else None
    )
    return {
        **llama.decoder_keys(config, in_part=True),
        ORIGINAL: trained or config.max_length,
        "sliding_window": config.windows[0],
        "resid_pdrop": config.residual_dropout,
    }


def tensors(config: DecoderConfig) -> Sequence[Tensor]:
    """Returns the tensors, and where their numbers belong."""
    theirs, ours = "model.layers.{layer}.self_attn", "decoder/layer_{layer}/attention"
    fused = [f"{ours}/{name}" for name in ("query", "key", "value")]
    return (
        *llama.stream_tensors(),
        *linear(f"{theirs}.qkv_proj", *fused),
        *linear(f"{theirs}.o_proj", f"{ours}/linear"),
        *feed_forward_tensors(),
    )


def feed_forward_tensors() -> Sequence[Tensor]:
    """Returns those of a feed-forward whose gate and up lie in one matrix."""
    theirs, ours = "model.layers.{layer}.mlp", "decoder/layer_{layer}/feed_forward"
    return (
        *linear(f"{theirs}.gate_up_proj", f"{ours}/gate", f"{ours}/up"),
        *linear(f"{theirs}.down_proj", f"{ours}/down"),
    )


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    buffers=("rotary_emb.inv_freq",),
)
