"""From a prompt to new tokens."""

from haiku_mqa.generation.beam import BeamResult, beam_search
from haiku_mqa.generation.conversation import Conversation
from haiku_mqa.generation.engine import Engine
from haiku_mqa.generation.generate import GenerationResult, Step, generate, stream
from haiku_mqa.generation.prefix import Prefix, read_prefix
from haiku_mqa.generation.proposers import Draft, PromptLookup
from haiku_mqa.generation.request import Request, RequestResult
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.generation.speculative import SpeculativeResult, speculate

__all__ = [
    "BeamResult",
    "Conversation",
    "Draft",
    "Engine",
    "GenerationResult",
    "Prefix",
    "PromptLookup",
    "Request",
    "RequestResult",
    "Sampling",
    "SpeculativeResult",
    "Step",
    "beam_search",
    "generate",
    "read_prefix",
    "speculate",
    "stream",
]
