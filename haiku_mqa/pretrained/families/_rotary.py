"""Rotary positions in a ``config.json``: two ways to write them, five kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haiku_mqa.config import DecoderConfig
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

KINDS = ("default", "linear", "llama3", "longrope", "yarn")
ORIGINAL = "original_max_position_embeddings"
THETA, FRACTION = NAMES = ("rope_theta", "partial_rotary_factor")


def read_rotary(
    keys: Keys,
    max_length: int,
    *,
    theta: float = 10_000.0,
    key_size: int | None = None,
    fraction: float = 1.0,
    names: tuple[str, str] = NAMES,
    kinds: Sequence[str] = KINDS,
    original: int | None = None,
) -> dict[str, Any]:
    """Returns the fields of a config that the keys about rotary positions mean.

    Args:
      keys: A file's; of old ``rope_theta`` and ``rope_scaling``, of late one mapping
        ``rope_parameters``.
      max_length: Of the decoder, in tokens.
      theta: What the family takes where the file has no ``rope_theta``.
      key_size: H; ``None`` for families that turn whole heads, and know no key for
        how much of one.
      fraction: What they take where the file has no such key.
      names: The family's own, outside of the mapping, for theta and for the fraction.
      kinds: Of scaling, those that the family has.
      original: Context of the first training, where the family says it outside.

    Returns:
      ``rope_theta`` and ``rope_scaling``, and ``rope_fraction`` with a ``key_size``.

    Raises:
      ValueError: A kind of scaling or a key of it is not supported.
      FormatError: A value cannot be.
    """
    theta = keys.number(names[0], theta, above=1.0)
    if key_size is not None:
        fraction = keys.number(names[1], fraction)
    if "rope_parameters" in keys and "rope_scaling" in keys:
        raise ValueError(
            "rope_parameters and rope_scaling say the same thing; one alone is allowed"
        )
    old, new = keys.inside("rope_scaling"), keys.inside("rope_parameters")
    inside = (new if old is None else old) or Keys({})
    if key_size is not None:
        fraction = _rounded_down(inside.number(FRACTION, fraction), key_size)
    fields = read_rotary_inside(inside, max_length, theta, kinds, original)
    return fields if key_size is None else {**fields, "rope_fraction": fraction}


def read_rotary_inside(
    inside: Keys | None,
    max_length: int,
    theta: float,
    kinds: Sequence[str] = KINDS,
    original: int | None = None,
) -> dict[str, Any]:
    """Returns the fields of a config that one mapping about rotary positions means.

    Args:
      inside: The mapping, if there is one; all of it is read.
      max_length: Of the decoder, in tokens.
      theta: What it is where the mapping has no ``rope_theta``.
      kinds: Of scaling, those that the family has.
      original: Context of the first training, where the family says it outside.
    """
    if inside is None:
        return {"rope_theta": theta, "rope_scaling": None}
    theta = inside.number(THETA, theta, above=1.0)
    scaling = _scaling(inside, max_length, kinds, original)
    inside.finish()
    return {"rope_theta": theta, "rope_scaling": scaling}


def _rounded_down(fraction: float, key_size: int) -> float:
    # Theirs is rounded down where ours goes to the nearest; mostly both are whole.
    turned = int(key_size * fraction)
    return fraction if round(key_size * fraction) == turned else turned / key_size


def _scaling(
    keys: Keys, max_length: int, kinds: Sequence[str], original: int | None
) -> RopeScaling | None:
    name = "rope_type" if "rope_type" in keys else "type"
    kind = keys.choice(name, {kind: kind for kind in kinds}, "default")
    keys.only("type", *kinds)  # some files say it twice
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=keys.number("factor"))
    if original is None:
        original = keys.count(ORIGINAL, max_length)
    else:
        keys.only(ORIGINAL, original)
    if kind in ("longrope", "su"):
        return _long_rope(keys, max_length, original)
    factor = keys.number("factor")
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=keys.number("low_freq_factor"),
            high_freq_factor=keys.number("high_freq_factor"),
            original_max_length=original,
        )
    keys.only("truncate", True)
    return YarnScaling(
        factor=factor,
        original_max_length=original,
        beta_fast=keys.number("beta_fast", 32.0),
        beta_slow=keys.number("beta_slow", 1.0),
        attention_factor=keys.number_or_none("attention_factor", None),
    )


def _long_rope(keys: Keys, max_length: int, original: int) -> LongRopeScaling:
    return LongRopeScaling(
        short_factors=keys.numbers("short_factor"),
        long_factors=keys.numbers("long_factor"),
        factor=keys.number("factor", max(1.0, max_length / original)),
        original_max_length=original,
        attention_factor=keys.number_or_none("attention_factor", None),
    )


def write_rotary(
    config: DecoderConfig, names: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Returns the keys that mean the rotary positions of all layers that have them.

    Args:
      config: Of the decoder.
      names: The family's own for theta and for the fraction of a head that is turned;
        ``None`` for families without the latter.

    Returns:
      The keys of old, which every version of transformers reads.
    """
    theta, scaling = next(filter(None, config.rotaries), (10_000.0, None))
    keys = {"rope_scaling": scaling_keys(scaling)}
    if names is None:
        return {THETA: theta, **keys}
    fraction, turned = config.rope_fraction, config.rotary_size
    if int(config.key_size * fraction) != turned:  # see _rounded_down
        fraction = (turned + 0.5) / config.key_size
    return {names[0]: theta, names[1]: fraction, **keys}


def scaling_keys(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Returns the value of ``rope_scaling`` that means a scaling.

    Args:
      scaling: If there is one.
    """
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    original = {ORIGINAL: scaling.original_max_length}
    if isinstance(scaling, LongRopeScaling):
        return {
            "rope_type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            "factor": scaling.factor,
            **original,
            **_attention_factor(scaling),
        }
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            **original,
        }
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        **original,
        **_attention_factor(scaling),
    }


def _attention_factor(scaling: LongRopeScaling | YarnScaling) -> dict[str, float]:
    factor = scaling.attention_factor
    return {} if factor is None else {"attention_factor": factor}
