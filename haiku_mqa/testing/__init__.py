"""The laws of decoders, of attention and of meshes, for anyone's to be held to.

Needs the extra ``test``, for Hypothesis.
"""

from haiku_mqa.testing.buckets import BUCKETS
from haiku_mqa.testing.check import check_attention, check_decoder, check_sharding
from haiku_mqa.testing.law import Law, LawResult, Report, try_law
from haiku_mqa.testing.laws import ATTENTION_LAWS, DECODER_LAWS, SHARDING_LAWS
from haiku_mqa.testing.reference import reference_logits
from haiku_mqa.testing.sharded_subject import ShardedSubject
from haiku_mqa.testing.subject import Remembering, Subject

__all__ = [
    "ATTENTION_LAWS",
    "BUCKETS",
    "DECODER_LAWS",
    "SHARDING_LAWS",
    "Law",
    "LawResult",
    "Remembering",
    "Report",
    "ShardedSubject",
    "Subject",
    "check_attention",
    "check_decoder",
    "check_sharding",
    "reference_logits",
    "try_law",
]
