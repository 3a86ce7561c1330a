"""Each mutant is killed by the laws that name it, and by no accident of the test."""

from __future__ import annotations

import functools

import pytest

from haiku_mqa.testing import (
    ATTENTION_LAWS,
    DECODER_LAWS,
    Law,
    Subject,
    try_law,
)
from tests.laws.mutants import ATTENTION_MUTANTS, MUTANTS, Mutant

EXAMPLES = 25


def law_named(laws: tuple[Law, ...], name: str) -> Law:
    return next(law for law in laws if law.name == name)


@functools.lru_cache
def good(bucket: str | None, form: str | None) -> Subject:
    """The subject without a mutant; its parameters serve the mutants too."""
    return Mutant(bucket, (), (), form).subject()


@pytest.mark.parametrize("name", MUTANTS)
def test_decoder_mutant_is_killed(name, record_kill):
    mutant = MUTANTS[name]
    params = good(mutant.bucket, mutant.form).params
    with mutant.planted():
        for killer in mutant.killers:
            subject = mutant.subject(params)
            result = try_law(law_named(DECODER_LAWS, killer), subject, EXAMPLES)
            assert not result.passed, f"{name} survives the law {killer}"
            assert law_named(DECODER_LAWS, killer).statement in result.message
            record_kill(name, killer, result)


@pytest.mark.parametrize("name", ATTENTION_MUTANTS)
def test_attention_mutant_is_killed(name, record_kill):
    killers, mutant = ATTENTION_MUTANTS[name]
    for killer in killers:
        result = try_law(law_named(ATTENTION_LAWS, killer), mutant, EXAMPLES)
        assert not result.passed, f"{name} survives the law {killer}"
        record_kill(f"attention: {name}", killer, result)


@pytest.mark.parametrize(
    ("bucket", "form", "killer"),
    dict.fromkeys((m.bucket, m.form, k) for m in MUTANTS.values() for k in m.killers),
)
def test_killer_holds_where_no_mutant_is_planted(bucket, form, killer):
    law = law_named(DECODER_LAWS, killer)
    assert try_law(law, good(bucket, form), EXAMPLES).passed
