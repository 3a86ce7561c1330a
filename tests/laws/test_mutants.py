"""Each mutant is killed by the laws that name it, and by no accident of the test."""

from __future__ import annotations

import pytest

import haiku_mqa as hm
from haiku_mqa.testing import (
    ATTENTION_LAWS,
    BUCKETS,
    DECODER_LAWS,
    Law,
    Subject,
    try_law,
)
from tests.laws.mutants import ATTENTION_MUTANTS, MUTANTS

EXAMPLES = 25


def law_named(laws: tuple[Law, ...], name: str) -> Law:
    return next(law for law in laws if law.name == name)


@pytest.mark.parametrize("name", MUTANTS)
def test_decoder_mutant_is_killed(name, record_kill):
    mutant = MUTANTS[name]
    # Parameters come from the good code: a mutant is to be caught by what it does.
    params = Subject(hm.build(BUCKETS[mutant.bucket])).params
    with mutant.planted():
        for killer in mutant.killers:
            subject = Subject(hm.build(BUCKETS[mutant.bucket]), params)
            result = try_law(law_named(DECODER_LAWS, killer), subject, EXAMPLES)
            assert not result.passed, f"{name} survives the law {killer}"
            assert "Error: " not in result.message.split("Error ")[0], result.message
            record_kill(name, killer, result)


@pytest.mark.parametrize("name", ATTENTION_MUTANTS)
def test_attention_mutant_is_killed(name, record_kill):
    killers, mutant = ATTENTION_MUTANTS[name]
    for killer in killers:
        result = try_law(law_named(ATTENTION_LAWS, killer), mutant, EXAMPLES)
        assert not result.passed, f"{name} survives the law {killer}"
        record_kill(f"attention: {name}", killer, result)


@pytest.mark.parametrize("name", MUTANTS)
def test_killers_hold_where_no_mutant_is_planted(name):
    mutant = MUTANTS[name]
    subject = Subject(hm.build(BUCKETS[mutant.bucket]))
    for killer in mutant.killers:
        assert try_law(law_named(DECODER_LAWS, killer), subject, 3).passed, killer
