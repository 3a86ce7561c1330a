"""Decoder-only transformers with multi-query attention for Haiku.

Names are imported when they are first used: what a zoo has, ``--help`` and
``--version`` need no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from haiku_mqa import (
        generation,
        kernels,
        sharding,
        testing,
        text,
        training,
        zoo,
    )
    from haiku_mqa.cache import KVCache, LayerCache
    from haiku_mqa.config import DecoderConfig
    from haiku_mqa.errors import FetchError, FormatError, PluginError
    from haiku_mqa.generation import GenerationResult, Sampling, generate, stream
    from haiku_mqa.heads import convert_heads
    from haiku_mqa.lora import AdaptedModel, LoRA
    from haiku_mqa.model import Model, build
    from haiku_mqa.modules import (
        DecoderLM,
        DecoderOutput,
        FeedForward,
        MultiQueryAttention,
        TransformerDecoder,
        TransformerDecoderBlock,
        feed_forward,
        transformer_decoder,
        transformer_decoder_block,
    )
    from haiku_mqa.ops import causal_mask, multi_query_attention
    from haiku_mqa.pretrained import from_pretrained, save_pretrained
    from haiku_mqa.quantization import quantize_params
    from haiku_mqa.rope_scaling import (
        LinearScaling,
        Llama3Scaling,
        LongRopeScaling,
        YarnScaling,
    )
    from haiku_mqa.zoo.loading import LoadedModel, load_pretrained

_HOME = {
    "DecoderConfig": "config",
    "LinearScaling": "rope_scaling",
    "Llama3Scaling": "rope_scaling",
    "LongRopeScaling": "rope_scaling",
    "YarnScaling": "rope_scaling",
    "FetchError": "errors",
    "FormatError": "errors",
    "PluginError": "errors",
    "causal_mask": "ops",
    "multi_query_attention": "ops",
    "KVCache": "cache",
    "LayerCache": "cache",
    "DecoderLM": "modules",
    "DecoderOutput": "modules",
    "FeedForward": "modules",
    "MultiQueryAttention": "modules",
    "TransformerDecoder": "modules",
    "TransformerDecoderBlock": "modules",
    "feed_forward": "modules",
    "transformer_decoder": "modules",
    "transformer_decoder_block": "modules",
    "Model": "model",
    "build": "model",
    "GenerationResult": "generation",
    "Sampling": "generation",
    "generate": "generation",
    "stream": "generation",
    "convert_heads": "heads",
    "AdaptedModel": "lora",
    "LoRA": "lora",
    "from_pretrained": "pretrained",
    "save_pretrained": "pretrained",
    "quantize_params": "quantization",
    "LoadedModel": "zoo.loading",
    "load_pretrained": "zoo.loading",
}
_ROOMS = (
    "generation",
    "kernels",
    "sharding",
    "testing",
    "text",
    "training",
    "zoo",
)

__all__ = [
    "AdaptedModel",
    "DecoderConfig",
    "DecoderLM",
    "DecoderOutput",
    "FeedForward",
    "FetchError",
    "FormatError",
    "GenerationResult",
    "KVCache",
    "LayerCache",
    "LinearScaling",
    "Llama3Scaling",
    "LoRA",
    "LoadedModel",
    "LongRopeScaling",
    "Model",
    "MultiQueryAttention",
    "PluginError",
    "Sampling",
    "TransformerDecoder",
    "TransformerDecoderBlock",
    "YarnScaling",
    "build",
    "causal_mask",
    "convert_heads",
    "feed_forward",
    "from_pretrained",
    "generate",
    "generation",
    "kernels",
    "load_pretrained",
    "multi_query_attention",
    "quantize_params",
    "save_pretrained",
    "sharding",
    "stream",
    "testing",
    "text",
    "training",
    "transformer_decoder",
    "transformer_decoder_block",
    "zoo",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("haiku-mqa")
    if name in _ROOMS:
        return importlib.import_module(f"haiku_mqa.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"haiku_mqa.{_HOME[name]}"), name)
    raise AttributeError(f"module 'haiku_mqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
