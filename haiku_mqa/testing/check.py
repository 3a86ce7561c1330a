"""Holding someone's decoder, or attention, to the laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from haiku_mqa.model import Params
from haiku_mqa.sharding import ShardedModel
from haiku_mqa.sharding.mesh import written
from haiku_mqa.testing.law import (
    LawResult,
    Report,
    check_applies,
    named_laws,
    try_laws,
)
from haiku_mqa.testing.laws import ATTENTION_LAWS, DECODER_LAWS, SHARDING_LAWS
from haiku_mqa.testing.sharded_subject import ShardedSubject
from haiku_mqa.testing.subject import Subject


def check_decoder(
    decoder: Any,
    *,
    params: Any = None,
    laws: Sequence[str] | None = None,
    examples: int = 25,
    seed: int = 0,
    on_law: Callable[[LawResult], None] | None = None,
) -> Report:
    """Holds any decoder to the laws that speak of it.

    Laws that need this package's parameter paths or cache are left out for decoders
    that have others.

    Args:
      decoder: A ``Model``, a ``ModelSpec``, or anything with their ``init``,
        ``apply``, ``init_cache`` and a ``config`` that has ``vocab_size``.
      params: Parameters to test with; freshly drawn and disturbed if ``None``.
      laws: The names of those that it is held to; all that speak of it if ``None``.
      examples: How many cases of each law at most.
      seed: Other seeds draw other cases.
      on_law: Called with each result as it is known.

    Returns:
      The report; ``print`` it for the table, ``report.passed`` is the verdict.

    Raises:
      ValueError: The decoder lacks what is needed to test it; there is no law of a
        name, or it does not speak of this decoder.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=16, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> check_decoder(model, laws=("causality", "chunks"), examples=1).passed
      True
    """
    name = getattr(decoder, "name", type(decoder).__name__)
    asked = named_laws(DECODER_LAWS, laws)
    subject = Subject(decoder, params)
    if laws is not None:
        check_applies(asked, subject)
    return try_laws(
        asked,
        subject,
        str(name),
        examples=examples,
        seed=seed,
        on_law=on_law,
    )


def check_attention(
    attention: Callable[..., Any],
    *,
    laws: Sequence[str] | None = None,
    examples: int = 25,
    seed: int = 0,
    on_law: Callable[[LawResult], None] | None = None,
) -> Report:
    """Holds an attention function to its laws.

    Args:
      attention: Called as ``haiku_mqa.multi_query_attention``: query ``[B, T, N, H]``,
        key ``[B, S, K, H]``, value ``[B, S, K, v]`` and a bool mask ``[T, S]`` or
        ``[B, N, T, S]``; returns ``[B, T, N, v]``.
      laws: The names of those that it is held to; all if ``None``.
      examples: How many cases of each law at most.
      seed: Other seeds draw other cases.
      on_law: Called with each result as it is known.

    Returns:
      The report.

    Raises:
      ValueError: There is no law of a name.

    Example:
      >>> from haiku_mqa import multi_query_attention
      >>> check_attention(multi_query_attention, examples=1).passed
      True
    """
    name = getattr(attention, "__name__", "attention")
    return try_laws(
        named_laws(ATTENTION_LAWS, laws),
        attention,
        name,
        examples=examples,
        seed=seed,
        on_law=on_law,
    )


def check_sharding(
    model: ShardedModel,
    *,
    params: Params | None = None,
    laws: Sequence[str] | None = None,
    examples: int = 5,
    seed: int = 0,
    on_law: Callable[[LawResult], None] | None = None,
) -> Report:
    """Holds a decoder over several devices to what it is on one.

    Args:
      model: As ``sharding.shard`` makes it, with rules of one's own or without.
      params: Parameters to test with; freshly drawn and disturbed if ``None``.
      laws: The names of those that it is held to; all if ``None``.
      examples: How many cases of each law at most.
      seed: Other seeds draw other cases.
      on_law: Called with each result as it is known.

    Returns:
      The report.

    Raises:
      ValueError: The model is not sharded, or there is no law of a name.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> from haiku_mqa.sharding import shard
      >>> model = build(DecoderConfig(
      ...     vocab_size=16, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> check_sharding(
      ...     shard(model, "data=1"), laws=("drawn", "logits"), examples=1).passed
      True
    """
    subject = ShardedSubject(model, params)
    return try_laws(
        named_laws(SHARDING_LAWS, laws),
        subject,
        written(subject.over.layout.mesh.shape),
        examples=examples,
        seed=seed,
        on_law=on_law,
    )
