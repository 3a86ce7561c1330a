"""Every decoder that a config can describe obeys every law that speaks of it."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import pytest

import haiku_mqa as hm
from haiku_mqa.testing import BUCKETS, DECODER_LAWS, Subject, try_law

# A quarter of the profile's examples: a law is tried in every bucket, and in sum
# there are thousands.
EXAMPLES = max(5, hypothesis.settings.default.max_examples // 4)


@functools.lru_cache(maxsize=2)
def subject_of(bucket: str) -> Subject:
    """One subject a bucket, so that each call is compiled once."""
    return Subject(hm.build(BUCKETS[bucket]))


@pytest.mark.parametrize("law", DECODER_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("bucket", BUCKETS)
def test_decoder_obeys_law(bucket, law, record_law):
    subject = subject_of(bucket)
    if not law.applies(subject):
        # The one law that does not speak of every bucket: learned positions are
        # absolute, and so must not obey it.
        assert (bucket, law.name) == ("learned", "shift")
        return
    result = try_law(law, subject, EXAMPLES)
    record_law(result)
    assert result.passed, result.message


def test_buckets_use_every_option_of_the_config():
    plain = {f.name: f.default for f in dataclasses.fields(hm.DecoderConfig)}
    for field, default in plain.items():
        values = [getattr(config, field) for config in BUCKETS.values()]
        if field in ("param_dtype", "dtype"):
            continue  # the law "bfloat16" turns these
        assert any(value != default for value in values), field
