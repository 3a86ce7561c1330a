"""A decoder is held to the laws that are asked for, or to all that speak of it."""

from __future__ import annotations

import pytest

import haiku_mqa as hm
from haiku_mqa.testing import BUCKETS, check_attention, check_decoder

MODEL = hm.build(BUCKETS["learned"])


def test_laws_that_are_asked_for_are_tried_in_their_own_order():
    report = check_decoder(MODEL, laws=("causality", "shape"), examples=1)
    assert [result.law for result in report.laws] == ["shape", "causality"]
    report = check_attention(hm.multi_query_attention, laws=["repeat"], examples=1)
    assert [result.law for result in report.laws] == ["repeat"]


@pytest.mark.parametrize(
    ("laws", "message"),
    [
        (("casuality",), "unknown law 'casuality': did you mean 'causality'? Allowed:"),
        ("causality", "laws must be a sequence of names, got 'causality'"),
        ((), r"laws must be a sequence of names, got \(\)"),
        (("shape", "shift"), "laws must speak of this decoder, and shift do not"),
    ],
)
def test_laws_that_cannot_be_tried_are_refused(laws, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        check_decoder(MODEL, laws=laws, examples=1)
