"""Every law, by what it is about."""

from haiku_mqa.testing.laws.agreement import AGREEMENT_LAWS
from haiku_mqa.testing.laws.attention import ATTENTION_LAWS
from haiku_mqa.testing.laws.batches import BATCH_LAWS
from haiku_mqa.testing.laws.dependence import DEPENDENCE_LAWS
from haiku_mqa.testing.laws.devices import SHARDING_LAWS
from haiku_mqa.testing.laws.memory import MEMORY_LAWS

DECODER_LAWS = (*AGREEMENT_LAWS, *DEPENDENCE_LAWS, *MEMORY_LAWS, *BATCH_LAWS)

__all__ = [
    "AGREEMENT_LAWS",
    "ATTENTION_LAWS",
    "BATCH_LAWS",
    "DECODER_LAWS",
    "DEPENDENCE_LAWS",
    "MEMORY_LAWS",
    "SHARDING_LAWS",
]
