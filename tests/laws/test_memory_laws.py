"""Every form of the cache obeys the laws of the static one."""

from __future__ import annotations

import functools

import hypothesis
import pytest

from haiku_mqa.testing import DECODER_LAWS, Subject, try_law
from tests.laws.forms import FORMS

# The laws that read from a cache; the others would say of a form what they say of
# its config.
LAWS = [
    law
    for law in DECODER_LAWS
    if law.name
    in (
        *("chunks", "ragged chunks", "packed chunks", "overflow"),
        *("greedy", "rows", "roll back", "prefix"),
    )
]
EXAMPLES = max(5, hypothesis.settings.default.max_examples // 16)


@functools.lru_cache(maxsize=2)
def subject_of(form: str) -> Subject:
    return Subject(FORMS[form])


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("form", FORMS)
def test_cache_of_form_obeys_law(form, law, record_law):
    subject = subject_of(form)
    if not law.applies(subject):
        # A ring has forgotten what it would have to bring back.
        assert ("ring" in form, law.name) == (True, "roll back")
        return
    result = try_law(law, subject, EXAMPLES)
    record_law(result)
    assert result.passed, result.message


def test_every_law_of_memory_is_tried():
    assert len(LAWS) == 8


def test_int8_rounds_by_far_more_than_the_static_cache_may():
    chunks = next(law for law in LAWS if law.name == "chunks")
    result = try_law(chunks, subject_of("int8"), EXAMPLES)
    assert 10 * chunks.tolerance < result.worst_error <= result.tolerance
