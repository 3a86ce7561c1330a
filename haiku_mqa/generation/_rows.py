"""The rows of one call, from their prompts to the last token of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation import loop
from haiku_mqa.generation._padding import padded
from haiku_mqa.generation._request import Request, check_ids
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.loop import Settings, State
from haiku_mqa.sharding.processes import fetched, on_device

FinishReason = Literal["end", "length", "stop"]


@dataclasses.dataclass(frozen=True)
class Step:
    """What each row got since the step before.

    Attributes:
      tokens: Its new tokens; none where it had ended.
      finish_reasons: Why it has ended, as in ``GenerationResult``; ``None`` where it
        goes on.
      logprobs: The log-probability of each of its new tokens; ``None`` where nobody
        asked.

    Example:
      >>> Step(tokens=[[5], []], finish_reasons=[None, "end"]).tokens[0]
      [5]
    """

    tokens: list[list[int]]
    finish_reasons: list[FinishReason | None]
    logprobs: list[list[float]] | None = None


@dataclasses.dataclass
class Row:
    """What a row has so far.

    Attributes:
      tokens: Its new tokens, an end token apart.
      logprobs: Of each of them, where they were asked for.
      reason: Why it ended; ``None`` where it goes on.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    reason: FinishReason | None = None

    def take(
        self, request: Request, tokens: Sequence[int], logprobs: Sequence[float]
    ) -> None:
        """Takes what was chosen for it, up to where it ends.

        Args:
          request: What was asked for.
          tokens: Chosen one after another.
          logprobs: Of each of them; empty where nobody asked.
        """
        seen = len(self.tokens)
        ends = [place for place, t in enumerate(tokens) if t in request.end_tokens]
        if ends:
            self.reason = "end"
        self.tokens += tokens[: ends[0] if ends else None]
        stops = request.stops
        whole = stops.find(self.tokens, seen) if stops and self.tokens[seen:] else None
        if whole is not None:
            del self.tokens[whole:]
            self.reason = "stop"
        elif self.reason is None and len(self.tokens) == request.max_new_tokens:
            self.reason = "length"
        self.logprobs += logprobs[: len(self.tokens) - seen]


def steps(request: Request, rows: Sequence[Row]) -> Iterator[Step]:
    """Yields what each row gets, as it is chosen.

    Args:
      request: What is asked for.
      rows: As many as it has, empty; each is told what it gets.

    Yields:
      What each row got.

    Raises:
      ValueError: ``allowed_tokens`` returned no token, or ids that are none.
      FloatingPointError: The model's logits were NaN.
    """
    # NumPy weights would be copied to the device at every call.
    request = dataclasses.replace(request, params=on_device(request.params))
    vocab_size = request.model.config.vocab_size
    settings = Settings(
        dials=Dials.of(request.samplings, vocab_size),
        rngs=request.rngs,
        end_tokens=jax.device_put(np.array(request.end_tokens, np.int32)),
        allowed=_allowed(request, rows),
    )
    state = _begun(request, settings)
    first = None if state.logprob is None else state.logprob[:, None]
    yield _taken(request, rows, state.token[:, None], first)
    left = request.max_new_tokens - 1
    while left > 0 and any(row.reason is None for row in rows):
        count = min(request.chunk, left)
        if request.stops is not None:  # which the compiled loop knows nothing of
            ended = [row.reason is not None for row in rows]
            state = state._replace(finished=jnp.asarray(ended))
        settings = settings._replace(allowed=_allowed(request, rows))
        state, chosen = loop.decode(
            request.model, request.params, state, jnp.int32(count), settings
        )
        yield _taken(request, rows, *chosen)
        left -= count


def _begun(request: Request, settings: Settings) -> State:
    model, params = request.model, request.params
    tokens, lengths = padded(request.prompts)
    cache, before = request.past.begun(
        model, len(lengths), int(lengths.max()) + request.max_new_tokens
    )
    wanted, samples = request.with_logprobs, request.num_samples
    if samples == 1:
        return loop.prefill(
            model, params, tokens, lengths, cache, settings, wanted, before
        )
    logits, cache = loop.read(model, params, tokens, lengths, cache, before)
    return loop.begin(logits, cache, tokens, lengths, settings, samples, wanted, before)


def _taken(
    request: Request, rows: Sequence[Row], tokens: jax.Array, logprobs: jax.Array | None
) -> Step:
    chosen = fetched(tokens)
    broken = (chosen == -1).any(axis=1)
    if broken.any():
        row = int(broken.argmax())
        rest = (
            ", or logit_bias and allowed_tokens leave it no token"
            if request.forbids
            else ""
        )
        raise FloatingPointError(
            f"the logits of row {row} are NaN{rest}; check the parameters with "
            "haiku_mqa.checks.check_finite"
        )
    likely = fetched(logprobs) if logprobs is not None else np.zeros((len(rows), 0))
    seen = [len(row.tokens) for row in rows]
    for row, mine, theirs in zip(rows, chosen, likely, strict=True):
        row.take(request, [t for t in mine.tolist() if t >= 0], theirs.tolist())
    return Step(
        tokens=[row.tokens[n:] for row, n in zip(rows, seen, strict=True)],
        finish_reasons=[row.reason for row in rows],
        logprobs=None
        if logprobs is None
        else [row.logprobs[n:] for row, n in zip(rows, seen, strict=True)],
    )


def _allowed(request: Request, rows: Sequence[Row]) -> jax.Array | None:
    if request.allowed_tokens is None:
        return None
    vocab_size = request.model.config.vocab_size
    allowed = np.ones((len(rows), vocab_size), bool)
    for index, row in enumerate(rows):
        if row.reason is not None:
            continue
        ids = request.allowed_tokens(index, list(row.tokens))
        if ids is None:
            continue
        name = f"allowed_tokens({index}, {row.tokens})"
        if not len(ids):
            raise ValueError(f"{name} must hold at least one token id, and is empty")
        places = np.asarray(ids)
        whole = np.issubdtype(places.dtype, np.integer)
        if not whole or places.min() < 0 or places.max() >= vocab_size:
            check_ids(name, list(ids), vocab_size)  # says which, and where
        allowed[index] = False
        allowed[index, places] = True
    return jnp.asarray(allowed)
