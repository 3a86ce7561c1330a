"""The ``hk.Module``s that own parameters, and the five classic functions."""

from haiku_mqa.modules.attention import MultiQueryAttention
from haiku_mqa.modules.block import TransformerDecoderBlock
from haiku_mqa.modules.context import Context, LayerOutput, make_context
from haiku_mqa.modules.decoder import TransformerDecoder
from haiku_mqa.modules.feed_forward import FeedForward
from haiku_mqa.modules.functional import (
    feed_forward,
    transformer_decoder,
    transformer_decoder_block,
)
from haiku_mqa.modules.language_model import DecoderLM, DecoderOutput

__all__ = [
    "Context",
    "DecoderLM",
    "DecoderOutput",
    "FeedForward",
    "LayerOutput",
    "MultiQueryAttention",
    "TransformerDecoder",
    "TransformerDecoderBlock",
    "feed_forward",
    "make_context",
    "transformer_decoder",
    "transformer_decoder_block",
]
