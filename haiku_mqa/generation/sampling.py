"""How a person says the next token is to be chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from haiku_mqa._arguments import check_positive, is_number, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    They act in this order: bias, penalties, temperature, top-k, top-p, min-p,
    typical-p. Greedy choice takes bias and penalties too; filters change nothing
    there, since the likeliest token is always in play.

    Attributes:
      temperature: Divides the logits; 0 is greedy, the likeliest token always. Else
        at least 1e-5: what is smaller is greedy but for rounding.
      top_k: How many of the likeliest tokens stay in play; ``None`` is all.
      top_p: The likeliest tokens whose probabilities first reach this sum stay in
        play, in (0, 1] (Holtzman et al. 2019); ``None`` is all.
      min_p: Tokens at least this many times as likely as the likeliest stay in play,
        in [0, 1] (Nguyen et al. 2024); ``None`` is all.
      typical_p: The tokens whose surprise is nearest to the mean and whose
        probabilities first reach this sum stay in play, in (0, 1] (Meister et al.
        2022); ``None`` is all.
      repetition_penalty: Divides positive logits of tokens that the prompt or the
        new text holds, and multiplies negative ones, > 0 (Keskar et al. 2019); 1 is
        off.
      presence_penalty: Is taken from the logit of each token that the new text
        holds; 0 is off.
      frequency_penalty: Is taken from a token's logit as often as the new text holds
        it; 0 is off.
      logit_bias: Token id to what is added to its logit; ``-inf`` forbids the token.

    Raises:
      ValueError: A field is out of what is allowed.

    Example:
      >>> Sampling(temperature=0.0).is_greedy
      True
      >>> Sampling(top_p=1.5)
      Traceback (most recent call last):
      ValueError: top_p must be in (0, 1], got 1.5
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # A mapping has no hash; two of equal hashes are still told apart by it.
    logit_bias: Mapping[int, float] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 1e-5 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be 0 or a number >= 1e-5, got {self.temperature}"
            )
        if self.top_k is not None and (
            isinstance(self.top_k, bool)
            or not isinstance(self.top_k, int)
            or self.top_k < 1
        ):
            raise ValueError(f"top_k must be a whole number >= 1, got {self.top_k}")
        for name in ("top_p", "typical_p"):
            share = getattr(self, name)
            if share is not None and not (is_number(share) and 0 < share <= 1):
                raise ValueError(f"{name} must be in (0, 1], got {share}")
        if self.min_p is not None and not (
            is_number(self.min_p) and 0 <= self.min_p <= 1
        ):
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        check_positive("repetition_penalty", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            if not is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)}")
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, and no rng needed."""
        return self.temperature == 0


def _checked_bias(logit_bias: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(logit_bias, Mapping):
        raise ValueError(
            "logit_bias must map token ids to what is added to their logits, "
            f"got {logit_bias!r}"
        )
    for token, value in logit_bias.items():
        whole_number("logit_bias", token, least=0)
        if not is_number(value) and value != -float("inf"):
            raise ValueError(
                f"logit_bias[{token}] must be a number, or -inf to forbid the token, "
                f"got {value!r}"
            )
    # A copy: what changes in the caller's own does not change this.
    return {int(token): float(value) for token, value in logit_bias.items()}
