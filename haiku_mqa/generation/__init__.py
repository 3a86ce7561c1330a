"""From a prompt to new tokens."""

from haiku_mqa.generation.generate import GenerationResult, generate, stream
from haiku_mqa.generation.sampling import Sampling

__all__ = ["GenerationResult", "Sampling", "generate", "stream"]
