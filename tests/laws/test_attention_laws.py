"""Attention over shared heads obeys its laws, whatever the number of heads."""

from __future__ import annotations

import hypothesis
import pytest

from haiku_mqa import multi_query_attention
from haiku_mqa.testing import ATTENTION_LAWS, try_law

EXAMPLES = hypothesis.settings.default.max_examples


@pytest.mark.parametrize("law", ATTENTION_LAWS, ids=lambda law: law.name)
def test_attention_obeys_law(law, record_law):
    result = try_law(law, multi_query_attention, EXAMPLES)
    record_law(result)
    assert result.passed, result.message
