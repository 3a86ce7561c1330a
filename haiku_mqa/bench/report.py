"""What the timings come to: medians, ratios, and the share of the limit."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """What ``haiku-mqa bench decode`` found.

    Attributes:
      model: What was run.
      parameters: How many it has.
      device: What it ran on.
      prompt_tokens: Length of the prompt.
      new_tokens: How many tokens each run chose.
      repeats: How many runs each median is of.
      bandwidths: Bytes per second that memory was read at, one a repeat.
      standings: This package's first.
      remarks: What was left out, and why; and what else bears on the figures.
    """

    model: str
    parameters: int
    device: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    bandwidths: tuple[float, ...]
    standings: tuple[Standing, ...]
    remarks: tuple[str, ...] = ()

    @property
    def bandwidth(self) -> float:
        """Median bytes per second."""
        return statistics.median(self.bandwidths)

    def limit(self, standing: Standing) -> float:
        """Returns the most tokens per second that memory lets a program choose.

        Args:
          standing: The program's.
        """
        return self.bandwidth / standing.weight_bytes_per_token

    def same_tokens(self, standing: Standing) -> int:
        """Returns how many leading tokens a program chose as this package did.

        Its own with weights that were not rounded, if it ran them.

        Args:
          standing: The program's.
        """
        exact = [s for s in self.standings if s.dtype != "int8"] or self.standings
        pairs = zip(exact[0].tokens, standing.tokens, strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), self.new_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain data that JSON can hold."""
        data = dataclasses.asdict(self)
        data["bandwidth_bytes_per_second"] = self.bandwidth
        data["bandwidth_runs"] = data.pop("bandwidths")
        data.pop("standings")
        data["programs"] = [self._program(standing) for standing in self.standings]
        return data

    def _program(self, standing: Standing) -> dict[str, Any]:
        ours = self.standings[0]
        return {
            "name": standing.name,
            "dtype": standing.dtype,
            "weight_bytes_per_token": standing.weight_bytes_per_token,
            "prefill_tokens_per_second": standing.prefill,
            "decode_tokens_per_second": standing.decode,
            "prefill_runs": list(standing.prefill_tokens_per_second),
            "decode_runs": list(standing.decode_tokens_per_second),
            "limit_tokens_per_second": self.limit(standing),
            "fraction_of_limit": standing.decode / self.limit(standing),
            "prefill_ratio": ours.prefill / standing.prefill,
            "decode_ratio": ours.decode / standing.decode,
            "same_tokens": self.same_tokens(standing),
        }

    def rows(self) -> list[list[str]]:
        """Returns the table's cells, a row for each program."""
        ours = self.standings[0]
        rows = []
        for standing in self.standings:
            is_peer = standing is not ours
            rows.append(
                [
                    standing.name,
                    standing.dtype,
                    f"{standing.prefill:.1f}",
                    f"{ours.prefill / standing.prefill:.2f}x" if is_peer else "",
                    f"{standing.decode:.1f}",
                    f"{ours.decode / standing.decode:.2f}x" if is_peer else "",
                    f"{standing.decode / self.limit(standing):.0%}",
                    f"{self.same_tokens(standing)}/{self.new_tokens}"
                    if is_peer
                    else "",
                ]
            )
        return rows


COLUMNS = (
    "program",
    "weights",
    "prefill tokens/s",
    "ours is",
    "decode tokens/s",
    "ours is",
    "of the limit",
    "same tokens",
)
