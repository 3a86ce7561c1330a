"""``llama``: Llama, Mistral, SmolLM and all that is built as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.ops import rotary_frequencies
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.architectures._architecture import Architecture, Part
from haiku_mqa.pretrained.architectures._decoder import gated_fields, gated_parts
from haiku_mqa.pretrained.gguf import GGUFTensor
from haiku_mqa.rope_scaling import Llama3Scaling

_DIVISORS = "rope_freqs.weight"
# Of all models whose frequencies are divided one by one; only the factor differs.
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA_3_LENGTH = 8192


def fields(keys: Keys, tensors: Mapping[str, GGUFTensor]) -> dict[str, Any]:
    """Returns the fields of a config."""
    read = gated_fields(keys)
    if _DIVISORS in tensors:
        read["rope_scaling"] = _scaling_of(tensors[_DIVISORS], read)
    return read


def _scaling_of(tensor: GGUFTensor, read: Mapping[str, Any]) -> Llama3Scaling:
    """Returns the rule that made the divisors of a file, which does not tell it."""
    divisors = tensor.dequantize()
    size = round(read["rope_fraction"] * read["key_size"])
    if divisors.shape != (size // 2,):
        raise FormatError(
            f"tensor {_DIVISORS} must be [{size // 2}], got {list(divisors.shape)}"
        )
    if not (divisors >= 1).all():
        raise FormatError(f"tensor {_DIVISORS} must be of numbers >= 1")
    scaling = Llama3Scaling(
        factor=float(divisors.max()), original_max_length=_LLAMA_3_LENGTH, **_LLAMA_3
    )
    theta = read["rope_theta"]
    kept, scaled = (rotary_frequencies(size, theta, s)[0] for s in (None, scaling))
    if read["rope_scaling"] or not np.allclose(kept / scaled, divisors, rtol=1e-4):
        raise ValueError(
            f"tensor {_DIVISORS} is not supported: its numbers are not those of "
            f"Llama 3's scaling with the factor {scaling.factor:g}"
        )
    return scaling


def parts(config: DecoderConfig) -> Iterator[Part]:
    """Yields all parameters; rotary pairs are neighbours in the file."""
    return gated_parts(config, turned="interleaved")


LLAMA = Architecture(name="llama", fields=fields, parts=parts, beside=(_DIVISORS,))
