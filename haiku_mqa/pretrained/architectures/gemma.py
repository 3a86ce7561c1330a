"""``gemma``: scaled embeddings, a gate of GELU, and heads of a size of their own.

A file's norms have the whole scale. Ours of this family have it less one, so that
what is read is the same decoder as out of a folder, and can be written as one.
"""

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
    read = gated_fields(keys)
    return {
        **read,
        "norm": "rms_one_plus",
        "activation": "gelu_tanh",
        "embedding_scale": read["d_model"] ** 0.5,
    }


def parts(config: DecoderConfig) -> Iterator[Part]:
    """Yields all parameters."""
    return gated_parts(config, norm="less_one")


GEMMA = Architecture(name="gemma", fields=fields, parts=parts)
