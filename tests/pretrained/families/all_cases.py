"""The tiny decoders of every family, in one table."""

from __future__ import annotations

from tests.pretrained.families import cases, cases_by_layout, cases_near_llama

CASES = cases.CASES | cases_near_llama.CASES | cases_by_layout.CASES
