"""How rotary positions are stretched past the context of the first training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from haiku_mqa._arguments import check_at_least, check_count, check_positive
from haiku_mqa.errors import unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rotary positions divided by a factor (position interpolation).

    Follows Chen et al. 2023, *Extending Context Window of Large Language Models
    via Positional Interpolation*.

    Attributes:
      factor: How many times longer the context is than the trained one, >= 1.

    Example:
      >>> LinearScaling(factor=0.5)
      Traceback (most recent call last):
      ValueError: rope_scaling.factor must be a number >= 1, got 0.5
    """

    factor: float

    def __post_init__(self) -> None:
        check_at_least("rope_scaling.factor", self.factor, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rotary scaling by wavelength, as the Llama 3.1 models use it.

    Follows Grattafiori et al. 2024, *The Llama 3 Herd of Models*.

    Attributes:
      factor: Divisor of the frequencies whose wavelength is long, >= 1.
      low_freq_factor: Wavelengths above ``original_max_length / low_freq_factor``
        tokens are scaled whole.
      high_freq_factor: Wavelengths below ``original_max_length /
        high_freq_factor`` tokens are left as they are.
      original_max_length: Context of the first training, in tokens.

    Example:
      >>> scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0,
      ...     high_freq_factor=4.0, original_max_length=8192)
      >>> scaling.factor
      8.0
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_length: int

    def __post_init__(self) -> None:
        check_at_least("rope_scaling.factor", self.factor, 1.0)
        check_count("rope_scaling.original_max_length", self.original_max_length)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "rope_scaling.low_freq_factor must be positive and below "
                f"high_freq_factor = {self.high_freq_factor}, "
                f"got {self.low_freq_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Rotary scaling that interpolates by frequency and sharpens attention.

    Follows Peng et al. 2023, *YaRN: Efficient Context Window Extension of Large
    Language Models*.

    Attributes:
      factor: How many times longer the context is than the trained one, >= 1.
      original_max_length: Context of the first training, in tokens.
      beta_fast: Rotations over the trained context above which a frequency is kept.
      beta_slow: Rotations below which a frequency is interpolated whole.
      attention_factor: Multiplies the rotated vectors; ``None`` takes the paper's
        ``0.1 * ln(factor) + 1``.

    Example:
      >>> YarnScaling(factor=4.0, original_max_length=4096).beta_fast
      32.0
    """

    factor: float
    original_max_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_at_least("rope_scaling.factor", self.factor, 1.0)
        check_count("rope_scaling.original_max_length", self.original_max_length)
        if self.attention_factor is not None:
            check_positive("rope_scaling.attention_factor", self.attention_factor)
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                "rope_scaling.beta_slow must be positive and below beta_fast = "
                f"{self.beta_fast}, got {self.beta_slow}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """Rotary scaling by a factor of its own for each frequency.

    Follows Ding et al. 2024, *LongRoPE: Extending LLM Context Window Beyond 2 Million
    Tokens*. There are factors for short contexts and for long ones. Which count is
    said by the config's ``max_length`` and not by a text's own length: what a cache
    has read with the one could not be gone on from with the other.

    Attributes:
      short_factors: Divisors of the frequencies, one for each pair of numbers that
        turn, where ``max_length`` is no more than ``original_max_length``.
      long_factors: The same where it is more.
      factor: How many times longer the context is than the trained one, >= 1.
      original_max_length: Context of the first training, in tokens, at least 2.
      attention_factor: Multiplies the rotated vectors; ``None`` takes the paper's
        ``sqrt(1 + ln(factor) / ln(original_max_length))``.

    Example:
      >>> scaling = LongRopeScaling(short_factors=[1, 1], long_factors=[1, 4],
      ...     factor=4.0, original_max_length=4096)
      >>> scaling.factors(max_length=4096), scaling.factors(max_length=16_384)
      ((1, 1), (1, 4))
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    factor: float
    original_max_length: int
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):
            # A list would make the config unhashable.
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for factor in getattr(self, name):
                check_positive(f"rope_scaling.{name}", factor)
        check_at_least("rope_scaling.factor", self.factor, 1.0)
        check_count("rope_scaling.original_max_length", self.original_max_length)
        check_at_least("rope_scaling.original_max_length", self.original_max_length, 2)
        if self.attention_factor is not None:
            check_positive("rope_scaling.attention_factor", self.attention_factor)

    def factors(self, max_length: int) -> tuple[float, ...]:
        """Returns those that count for a context.

        Args:
          max_length: Of the decoder, in tokens.
        """
        is_long = max_length > self.original_max_length
        return self.long_factors if is_long else self.short_factors


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling
_KINDS = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "longrope": LongRopeScaling,
}


def scaling_to_dict(scaling: RopeScaling) -> dict[str, Any]:
    """Returns a scaling as plain data that JSON can hold.

    Args:
      scaling: The scaling.

    Example:
      >>> scaling_to_dict(LinearScaling(factor=2.0))
      {'kind': 'linear', 'factor': 2.0}
    """
    kind = next(kind for kind, cls in _KINDS.items() if type(scaling) is cls)
    fields = dataclasses.asdict(scaling).items()
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in fields}
    return {"kind": kind, **plain}


def scaling_from_dict(data: Mapping[str, Any]) -> RopeScaling:
    """Returns the scaling that ``scaling_to_dict`` wrote.

    Args:
      data: Its kind, and its fields.

    Returns:
      The scaling.

    Raises:
      ValueError: The kind or a field is unknown, a field is missing, or a value is
        not allowed.

    Example:
      >>> scaling_from_dict({"kind": "linear", "factor": 2.0})
      LinearScaling(factor=2.0)
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise unknown_name("rope_scaling.kind", str(kind), _KINDS)
    fields = {f.name for f in dataclasses.fields(_KINDS[kind])}
    for name in values:
        if name not in fields:
            raise unknown_name(f"rope_scaling field of kind {kind!r}", name, fields)
    needed = {
        f.name
        for f in dataclasses.fields(_KINDS[kind])
        if f.default is dataclasses.MISSING
    }
    if missing := sorted(needed - set(values)):
        raise ValueError(f"rope_scaling of kind {kind!r} lacks: {', '.join(missing)}")
    return _KINDS[kind](**values)
