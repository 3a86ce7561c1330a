"""Speculative decoding as people call it: several tokens from one call of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation._padding import bucket, padded
from haiku_mqa.generation._past import Past
from haiku_mqa.generation._request import checked_request
from haiku_mqa.generation._rows import FinishReason
from haiku_mqa.generation.acceptance import draw_of
from haiku_mqa.generation.loop import CHUNK, read
from haiku_mqa.generation.prefix import Prefix
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
    prefix: Prefix | None = None,
    cache_dtype: jax.typing.DTypeLike | None = None,
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
      prefix: As ``generate``; without rings, which cannot forget what did not stand.
        A draft reads it itself.
      cache_dtype: Of the model's cache, as ``generate``; a draft's is of its own.
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
        prefix=prefix,
        cache_dtype=cache_dtype,
    )
    if prefix is not None and prefix.cache.windows:
        raise ValueError(
            "prefix must be read with ring=False for speculate: rings cannot forget "
            "the proposals that did not stand"
        )
    draw = draw_of(asked.samplings, model.config.vocab_size, asked.rngs)
    texts = asked.past.joined(prompts)
    starts = np.array([len(text) for text in texts], np.int32)
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
    state = _begun(model, params, prompts, proposer, request, asked.past)
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
    past: Past,
) -> State:
    tokens, lengths = padded(prompts)
    longest = int(request.limits.max())
    cache, before = past.begun(model, len(prompts), longest - len(past.tokens))
    logits, cache = read(model, params, tokens, lengths, cache, before)
    texts, _ = padded(past.joined(prompts))
    return begin(proposer, logits, texts, cache, request)


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
