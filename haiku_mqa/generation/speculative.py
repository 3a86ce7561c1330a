"""Speculative decoding as people call it: several tokens from one call of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation._request import checked_request
from haiku_mqa.generation._rows import FinishReason, bucket, padded
from haiku_mqa.generation.acceptance import draw_of
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.generation.proposers import Draft, PromptLookup
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.generation.speculative_loop import (
    DRAFT_IS_NAN,
    NO_TOKEN,
    Request,
    State,
    advance,
    begin,
)
from haiku_mqa.model import Model, Params


@dataclasses.dataclass(frozen=True)
class SpeculativeResult:
    """What was generated, and how much of it was guessed.

    Attributes:
      tokens: One list of new tokens for each prompt, ragged; the prompt and the end
        token are not among them.
      finish_reasons: For each prompt ``"end"`` where an end token came, ``"length"``
        where ``max_new_tokens`` did.
      proposed: How many tokens were proposed, in all rows together; what was proposed
        behind a row's end is not counted.
      accepted: How many of these stood.
      calls: How often the model was called after the prompts were read. ``generate``
        calls it once for each token of its longest row but the first.

    Example:
      >>> SpeculativeResult([[5, 6, 7]], ["length"], 4, 1, 1).acceptance
      0.25
    """

    tokens: list[list[int]]
    finish_reasons: list[FinishReason]
    proposed: int
    accepted: int
    calls: int

    @property
    def acceptance(self) -> float:
        """The share of proposals that stood; 0 where there were none."""
        return self.accepted / self.proposed if self.proposed else 0.0


def speculate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    proposer: Draft | PromptLookup,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] | None = None,
    rng: jax.Array | None = None,
    end_tokens: Sequence[int] = (),
    on_token: Callable[[int, int], None] | None = None,
) -> SpeculativeResult:
    """Continues prompts as ``generate`` does, several tokens to a call where it can.

    A proposer guesses the next tokens, and the model reads them all in one call, which
    costs little more than reading one where the weights are most of what is read. What
    it would not have chosen is thrown away (Leviathan et al. 2023, *Fast Inference from
    Transformers via Speculative Decoding*).

    Greedy tokens are those of ``generate``, whatever is proposed, and with
    ``PromptLookup`` so are sampled ones. With ``Draft``, sampled tokens have
    ``generate``'s distribution and are others. One thing can tell them apart: a call
    that reads several tokens rounds its logits otherwise, and where two tokens are as
    good as equal the other one may be chosen.

    Args:
      model: The model.
      params: Its parameters.
      prompts: One list of token ids for each row, none empty.
      proposer: Who guesses.
      max_new_tokens: How many tokens a row gets at most.
      sampling: How tokens are chosen, by the draft too; greedy if ``None``. One for
        all, or one for each prompt; without penalties.
      rng: As ``generate``.
      end_tokens: A row ends where it chooses one of these.
      on_token: Called with row and token after each call of the model, for one row
        after another.

    Returns:
      The new tokens of each prompt, why each ended, and how many were guessed.

    Raises:
      ValueError: As ``generate``; or the proposer does not fit the model, or
        ``sampling`` has a penalty.
      FloatingPointError: The logits of the model or of the draft were NaN.

    Example:
      >>> from haiku_mqa import DecoderConfig, build, generate
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> prompts = [[1, 2, 3, 1, 2], [4]]
      >>> result = speculate(
      ...     model, params, prompts, proposer=PromptLookup(), max_new_tokens=9)
      >>> result.tokens == generate(model, params, prompts, max_new_tokens=9).tokens
      True
    """
    asked = checked_request(
        model,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        rng=rng,
        end_tokens=end_tokens,
        num_samples=1,
        stop=(),
        tokenizer=None,
        allowed_tokens=None,
        chunk=CHUNK,
    )
    draw = draw_of(asked.samplings, model.config.vocab_size, asked.rngs)
    starts = np.array([len(prompt) for prompt in prompts], np.int32)
    if not isinstance(proposer, Draft | PromptLookup):
        raise ValueError(
            f"proposer must be a Draft or a PromptLookup, got {proposer!r}"
        )
    proposer.check(model, int(starts.max()) + max_new_tokens)
    # NumPy weights would be copied to the device at every call.
    params, proposer = jax.device_put((params, proposer))
    steps = jnp.int32(1 if on_token else CHUNK)
    request = Request(
        draw=draw,
        starts=jnp.asarray(starts),
        limits=jnp.asarray(starts + max_new_tokens),
        end_tokens=jnp.asarray(_padded_ends(end_tokens)),
    )
    tokens: list[list[int]] = [[] for _ in prompts]
    told, ends = starts, set(end_tokens)
    state = _begun(model, params, prompts, proposer, request)
    while True:
        _check_finite(state)
        text, known = np.asarray(state.rows.text), np.asarray(state.rows.known)
        for row, new in enumerate(tokens):
            for token in text[row, told[row] : known[row]].tolist():
                if token not in ends:
                    new.append(token)
                    if on_token:
                        on_token(row, token)
        if bool(state.rows.finished.all()):
            break
        told = known
        state = advance(model, params, proposer, state, steps, request)
    return SpeculativeResult(
        tokens=tokens,
        finish_reasons=[
            "length" if len(row) == max_new_tokens else "end" for row in tokens
        ],
        proposed=int(state.rows.proposed.sum()),
        accepted=int(state.rows.accepted.sum()),
        calls=int(state.calls),
    )


def _padded_ends(end_tokens: Sequence[int]) -> np.ndarray:
    """Returns end tokens, and what is no token, so that few numbers are programs."""
    ends = np.full(bucket(len(end_tokens)), NO_TOKEN, np.int32)
    ends[: len(end_tokens)] = list(end_tokens)
    return ends


def _begun(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    proposer: Draft | PromptLookup,
    request: Request,
) -> State:
    tokens, _ = padded(prompts)
    cache = model.init_cache(len(prompts), bucket(int(request.limits.max())))
    return begin(model, params, proposer, tokens, cache, request)


def _check_finite(state: State) -> None:
    fault = np.asarray(state.rows.fault)
    if not fault.any():
        return
    row = int((fault > 0).argmax())
    whose = "the draft's logits" if fault[row] == DRAFT_IS_NAN else "the logits"
    raise FloatingPointError(
        f"{whose} of row {row} are NaN; check the parameters with "
        "haiku_mqa.checks.check_finite"
    )
