"""Models whose caches are of every form: rings, int8, and both."""

from __future__ import annotations

from haiku_mqa.testing import BUCKETS, Remembering

# Fewer layers compile faster, and each kind is there once.
_CAPPED = BUCKETS["capped"].first_layers(2)

FORMS = {
    "ring, one layer of two": Remembering(BUCKETS["alibi"], ring=True),
    "ring, every layer": Remembering(BUCKETS["stretched"], ring=True),
    "int8": Remembering(BUCKETS["grouped"], cache_dtype="int8"),
    "int8 and ring": Remembering(_CAPPED, ring=True, cache_dtype="int8"),
}
