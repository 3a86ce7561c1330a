"""What is asked of an engine, checked at its door."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.config import DecoderConfig
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.request import MAX_BIASES, MOST_TOLD, Request, Runner
from haiku_mqa.generation.sampling import Sampling


def checked_request(
    runner: Runner,
    config: DecoderConfig,
    max_length: int,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None,
    seed: int | None,
    end_tokens: Sequence[int],
    logprobs: bool,
    top_logprobs: int,
    on_progress: Callable[[], None] | None,
) -> Request:
    """Returns a request, or says at the door what is wrong with it.

    Args:
      runner: The engine.
      config: Of its model.
      max_length: How many tokens a slot has room for.
      prompt: As ``Engine.submit``; likewise the rest.
      max_new_tokens: See there.
      sampling: See there.
      seed: See there.
      end_tokens: See there.
      logprobs: See there.
      top_logprobs: See there.
      on_progress: See there.

    Raises:
      ValueError: As ``Engine.submit``.
    """
    most = whole_number("max_new_tokens", max_new_tokens)
    sampling = Sampling(temperature=0.0) if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling must be a Sampling or None, got {sampling!r}")
    Dials.all_on([sampling], config.vocab_size, MAX_BIASES)  # refuses a wrong bias
    if seed is not None:
        seed = whole_number("seed", seed, 0, 2**32 - 1)
    elif not sampling.is_greedy:
        raise ValueError(
            "seed must be given where temperature is above 0, got temperature = "
            f"{sampling.temperature}"
        )
    if not isinstance(logprobs, bool):
        raise ValueError(f"logprobs must be True or False, got {logprobs!r}")
    told = whole_number("top_logprobs", top_logprobs, 0, MOST_TOLD)
    if told and not logprobs:
        raise ValueError(
            f"top_logprobs must be 0 where logprobs is False, got {top_logprobs}"
        )
    if isinstance(prompt, str) or not hasattr(prompt, "__len__"):
        raise ValueError(f"prompt must be a list of token ids, got {prompt!r}")
    if not len(prompt):
        raise ValueError("prompt must hold at least one token id, and is empty")
    ids = _checked_ids("prompt", prompt, config.vocab_size)
    if len(ids) + most > max_length:
        raise ValueError(
            f"prompt has {len(ids)} tokens and max_new_tokens is {most}: together more "
            f"than the engine's max_length = {max_length}"
        )
    return Request(
        runner,
        ids,
        max_new_tokens=most,
        sampling=sampling,
        seed=seed,
        end_tokens=_checked_ids("end_tokens", end_tokens, config.vocab_size),
        logprobs=logprobs,
        top_logprobs=min(told, config.vocab_size),
        on_progress=on_progress,
    )


def _checked_ids(name: str, ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    for place, token in enumerate(ids):
        whole = isinstance(token, int | np.integer)
        if not whole or not 0 <= token < vocab_size:
            raise ValueError(
                f"{name} must hold ids from 0 to {vocab_size - 1} (vocab_size = "
                f"{vocab_size}), got {token} at {place}"
            )
    return tuple(int(token) for token in ids)
