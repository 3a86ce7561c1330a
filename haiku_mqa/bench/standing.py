"""What the timings of one stream of text come to."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from haiku_mqa.bench.decode import Program, Timing


@dataclasses.dataclass(frozen=True)
class Standing:
    """How one program fared.

    Attributes:
      name: What it is called, with its version.
      dtype: What its weights are held in.
      weight_bytes_per_token: Of the weights that it reads for each token.
      prefill_tokens_per_second: Of each run: prompt tokens over the seconds to the
        first new token.
      decode_tokens_per_second: Of each run: new tokens after the first, over the
        seconds they took.
      tokens: What it chose.
    """

    name: str
    dtype: str
    weight_bytes_per_token: int
    prefill_tokens_per_second: tuple[float, ...]
    decode_tokens_per_second: tuple[float, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(
        cls, program: Program, timings: Sequence[Timing], prompt_tokens: int
    ) -> Standing:
        """Returns the standing of a program.

        Args:
          program: The program.
          timings: Of its runs, at least one.
          prompt_tokens: How long the prompt was.
        """
        return cls(
            program.name,
            program.dtype,
            program.weight_bytes,
            tuple(prompt_tokens / t.prefill_seconds for t in timings),
            tuple((len(t.tokens) - 1) / t.decode_seconds for t in timings),
            timings[0].tokens,
        )

    @property
    def prefill(self) -> float:
        """Median prefill tokens per second."""
        return statistics.median(self.prefill_tokens_per_second)

    @property
    def decode(self) -> float:
        """Median decode tokens per second."""
        return statistics.median(self.decode_tokens_per_second)
