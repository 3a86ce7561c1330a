"""Arithmetic on arrays. Nothing here owns a parameter."""

from haiku_mqa.ops.attention import alibi_slopes, multi_query_attention
from haiku_mqa.ops.masks import causal_mask
from haiku_mqa.ops.rotary import apply_rotary, rotary_frequencies

__all__ = [
    "alibi_slopes",
    "apply_rotary",
    "causal_mask",
    "multi_query_attention",
    "rotary_frequencies",
]
