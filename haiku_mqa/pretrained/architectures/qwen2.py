"""``qwen2``: Qwen 2 and 2.5, with biases where queries, keys and values are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.architectures._architecture import Architecture, Part
from haiku_mqa.pretrained.architectures._decoder import gated_fields, gated_parts
from haiku_mqa.pretrained.gguf import GGUFTensor


def fields(keys: Keys, tensors: Mapping[str, GGUFTensor]) -> dict[str, Any]:
    """Returns the fields of a config."""
    biases = dict.fromkeys(("query_bias", "key_bias", "value_bias"), True)
    return {**gated_fields(keys), **biases}


def parts(config: DecoderConfig) -> Iterator[Part]:
    """Yields all parameters."""
    yield from gated_parts(config)
    keys, values = config.key_size, config.value_size
    for i in range(config.num_layers):
        for letter, name, size in (
            ("q", "query", config.num_heads * keys),
            ("k", "key", config.num_kv_heads * keys),
            ("v", "value", config.num_kv_heads * values),
        ):
            path = f"decoder/layer_{i}/attention/{name}"
            yield Part(f"blk.{i}.attn_{letter}.bias", (size,), path, "b")


QWEN2 = Architecture(name="qwen2", fields=fields, parts=parts)
