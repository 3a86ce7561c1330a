"""``falcon``: parallel blocks with one norm (7B) or two (40B and 180B)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.architectures._architecture import Architecture, Part
from haiku_mqa.pretrained.architectures._decoder import (
    decoder_fields,
    number,
    outer_parts,
)
from haiku_mqa.pretrained.gguf import GGUFTensor

_SECOND_NORM = "blk.0.attn_norm_2.weight"


def fields(keys: Keys, tensors: Mapping[str, GGUFTensor]) -> dict[str, Any]:
    """Returns the fields of a config."""
    two_norms = _SECOND_NORM in tensors
    return {
        **decoder_fields(keys),
        "norm": "layer",
        "norm_eps": number(keys, "attention.layer_norm_epsilon"),
        "block_layout": "parallel" if two_norms else "parallel_one_norm",
        "activation": "gelu",
        "gated": False,
    }


def parts(config: DecoderConfig) -> Iterator[Part]:
    """Yields all parameters; one tensor has queries, then keys, then values."""
    yield from outer_parts(config)
    yield from _norm(config, "output_norm", "decoder/final_norm")
    two_norms = config.block_layout == "parallel"
    for i in range(config.num_layers):
        blk, layer = f"blk.{i}", f"decoder/layer_{i}"
        # Where there are two, the first is the feed-forward layer's.
        attention_norm = f"{blk}.attn_norm_2" if two_norms else f"{blk}.attn_norm"
        yield from _norm(config, attention_norm, f"{layer}/attention_norm")
        if two_norms:
            yield from _norm(config, f"{blk}.attn_norm", f"{layer}/feed_forward_norm")
        yield from _attention(config, blk, f"{layer}/attention")
        d, f = config.d_model, config.d_ff
        up, down = f"{layer}/feed_forward/up", f"{layer}/feed_forward/down"
        yield Part(f"{blk}.ffn_up.weight", (f, d), up, "w", "matrix")
        yield Part(f"{blk}.ffn_down.weight", (d, f), down, "w", "matrix")


def _norm(config: DecoderConfig, name: str, path: str) -> Iterator[Part]:
    yield Part(f"{name}.weight", (config.d_model,), path, "scale")
    yield Part(f"{name}.bias", (config.d_model,), path, "offset")


def _attention(config: DecoderConfig, blk: str, path: str) -> Iterator[Part]:
    d, queries = config.d_model, config.num_heads * config.key_size
    keys = config.num_kv_heads * config.key_size
    values = config.num_kv_heads * config.value_size
    shape = (queries + keys + values, d)
    start = 0
    for name, size in (("query", queries), ("key", keys), ("value", values)):
        rows = (start, start + size)
        tensor = f"{blk}.attn_qkv.weight"
        yield Part(tensor, shape, f"{path}/{name}", "w", "matrix", rows)
        start += size
    output = (d, config.num_heads * config.value_size)
    yield Part(f"{blk}.attn_output.weight", output, f"{path}/linear", "w", "matrix")


FALCON = Architecture(name="falcon", fields=fields, parts=parts)
