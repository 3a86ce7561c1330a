"""Where requests stand, as arrays that a compiled program takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.request import MAX_BIASES, Request
from haiku_mqa.generation.sampling import Sampling

_NO_END = -3  # as no token is
_ENDS = 8  # end tokens that a row is stopped at; the host sees to any further ones
_IDLE = Sampling(temperature=0.0)


class Rows(NamedTuple):
    """Where rows stand before a call.

    Attributes:
      token: int32 ``[W]``, chosen last and not yet read.
      chosen: int32 ``[W]``, how many tokens were chosen so far.
      left: int32 ``[W]``, how many may still be; 0 where no one decodes.
      ends: int32 ``[W, E]``, end tokens.
      rngs: uint32 ``[W, 2]``, the words of PRNG keys.
      dials: How to choose, of which none is ``None``.
      is_plain: bool, whether every row is greedy and nothing else.
      asks_logprobs: bool, whether any row is told how likely its tokens are.
    """

    token: np.ndarray
    chosen: np.ndarray
    left: np.ndarray
    ends: np.ndarray
    rngs: np.ndarray
    dials: Dials
    is_plain: np.ndarray
    asks_logprobs: np.ndarray

    @classmethod
    def of(cls, requests: Sequence[Request | None], vocab_size: int) -> Rows:
        """Returns the rows of requests; an idle one for each ``None``."""
        token, chosen, left = np.zeros((3, len(requests)), np.int32)
        ends = np.full((len(requests), _ENDS), _NO_END, np.int32)
        rngs = np.stack([key_words(0)] * len(requests))
        for row, request in enumerate(requests):
            if request is None:
                continue
            tokens = request.tokens
            token[row] = tokens[-1] if tokens else 0
            chosen[row] = len(tokens)
            left[row] = request.max_new_tokens - len(tokens)
            first = request.end_tokens[:_ENDS]
            ends[row, : len(first)] = first
            rngs[row] = key_words(request.seed or 0)
        samplings = tuple(
            request.sampling if request else _IDLE for request in requests
        )
        dials, is_plain = _dials(samplings, vocab_size)
        asks = any(
            request is not None and request.with_logprobs for request in requests
        )
        return cls(
            token,
            chosen,
            left,
            ends,
            rngs,
            dials,
            np.asarray(is_plain),
            np.asarray(asks),
        )


@functools.lru_cache(maxsize=256)
def _dials(samplings: tuple[Sampling, ...], vocab_size: int) -> tuple[Dials, bool]:
    dials = Dials.all_on(samplings, vocab_size, MAX_BIASES)
    return dials, Dials.of(samplings, vocab_size) == Dials()


@functools.lru_cache(maxsize=1024)
def key_words(seed: int) -> np.ndarray:
    """Returns the words of ``jax.random.key(seed)``, uint32 ``[2]``."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))
