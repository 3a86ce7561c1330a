"""Prompts read and tokens chosen, timed: one stream of text, batch 1, greedy."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Protocol

import haiku_mqa
from haiku_mqa.generation import stream
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.model import Model, Params
from haiku_mqa.quantization import is_quantized


@dataclasses.dataclass(frozen=True)
class Timing:
    """One run of one program.

    Attributes:
      prefill_seconds: From the prompt to the first new token.
      decode_seconds: From the first new token to the last.
      tokens: The new tokens; of the first row, where there are several.
    """

    prefill_seconds: float
    decode_seconds: float
    tokens: tuple[int, ...]


class Program(Protocol):
    """Something that continues a prompt.

    Attributes:
      name: What it is called, with its version.
      dtype: What its weights are held in.
      weight_bytes: Of the weights that it reads for each token.
    """

    name: str
    dtype: str
    weight_bytes: int

    def run(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Continues a prompt greedily by exactly ``new_tokens`` tokens.

        Args:
          prompt: Token ids.
          new_tokens: How many tokens are to be chosen.

        Returns:
          How long it took, and the tokens.
        """
        ...


class Ours:
    """This package's ``stream``, as a ``Program``."""

    def __init__(self, model: Model, params: Params):
        """Takes the model as it was loaded.

        Args:
          model: The model.
          params: Its weights, on the device.
        """
        self.name = f"haiku_mqa {haiku_mqa.__version__}"
        self.dtype = "int8" if is_quantized(params) else model.config.dtype
        self.weight_bytes = weight_bytes_per_token(model, params)
        self._model = model
        self._params = params

    def run(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Continues a prompt greedily by exactly ``new_tokens`` tokens.

        Args:
          prompt: Token ids.
          new_tokens: How many tokens are to be chosen.

        Returns:
          How long it took, and the tokens.
        """
        return self.run_rows([prompt], new_tokens)

    def run_rows(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        """Continues prompts of one length together.

        Args:
          prompts: Token ids, a list for each row.
          new_tokens: How many tokens are to be chosen in each row.

        Returns:
          How long it took, and the tokens of the first row.
        """
        tokens: list[int] = []
        first = start = time.perf_counter()
        for step in stream(
            self._model,
            self._params,
            prompts,
            max_new_tokens=new_tokens,
            chunk=CHUNK,
        ):
            if not tokens:
                first = time.perf_counter()
            tokens += step.tokens[0]
        end = time.perf_counter()
        return Timing(first - start, end - first, tuple(tokens))


def weight_bytes_per_token(
    model: Model, params: Params, itemsize: int | None = None
) -> int:
    """Returns how many bytes of weights are read to choose one token.

    An embedding that is not the output matrix too is only looked up, a row of it.

    Args:
      model: The model.
      params: Its weights.
      itemsize: Of one weight, in bytes; what it is in ``params`` if ``None``.

    Example:
      >>> import jax
      >>> config = haiku_mqa.DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> model = haiku_mqa.build(config)
      >>> params = model.init(jax.random.key(0))
      >>> weight_bytes_per_token(model, params)
      533760
    """
    looked_up = {"decoder_lm/position_embed"}
    if not model.config.tie_embeddings:
        looked_up.add("decoder_lm/embed")
    return sum(
        leaf.nbytes if itemsize is None else math.prod(leaf.shape) * itemsize
        for module, leaves in params.items()
        if module not in looked_up
        for leaf in leaves.values()
    )
