"""Arithmetic on arrays. Nothing here owns a parameter."""

from haiku_mqa.ops.attention import alibi_slopes, multi_query_attention
from haiku_mqa.ops.masks import causal_mask
from haiku_mqa.ops.products import dot, dots, wide_dot, wide_table_dot
from haiku_mqa.ops.quantized import (
    QuantizedMatrix,
    dequantize,
    kept_quantized,
    quantize,
    quantized_dot,
    quantized_dots,
)
from haiku_mqa.ops.rotary import apply_rotary, rotary_frequencies

__all__ = [
    "QuantizedMatrix",
    "alibi_slopes",
    "apply_rotary",
    "causal_mask",
    "dequantize",
    "dot",
    "dots",
    "kept_quantized",
    "multi_query_attention",
    "quantize",
    "quantized_dot",
    "quantized_dots",
    "rotary_frequencies",
    "wide_dot",
    "wide_table_dot",
]
