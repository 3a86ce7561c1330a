"""Generation as people call it: lists of tokens in, lists of tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax

from haiku_mqa.generation._padding import bucket
from haiku_mqa.generation._request import AllowedTokens, checked_request
from haiku_mqa.generation._rows import FinishReason, Row, Step, steps
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.generation.prefix import Prefix
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.generation.stop import StopStrings
from haiku_mqa.model import Model, Params
from haiku_mqa.text import AnyTokenizer

__all__ = ["FinishReason", "GenerationResult", "Step", "bucket", "generate", "stream"]

_CHUNK_TO_STOP = 8  # tokens; those after a stop string are computed for nothing


@dataclasses.dataclass(frozen=True)
class GenerationResult:
    """What was generated.

    Attributes:
      tokens: One list of new tokens for each row, ragged; the prompt and the end
        token are not among them. Rows are prompts, or with ``num_samples`` the
        samples of the first prompt, those of the second, and so on.
      finish_reasons: For each row ``"end"`` where an end token came, ``"stop"`` where
        a stop string did, ``"length"`` where ``max_new_tokens`` did.
      logprobs: The log-probability of each token in the model's own distribution,
        whatever the sampling; ``None`` where nobody asked.
      texts: What each row says, cut before its stop string; ``None`` where no
        tokenizer was given.

    Example:
      >>> GenerationResult(tokens=[[5, 6], []], finish_reasons=["length", "end"]).tokens
      [[5, 6], []]
    """

    tokens: list[list[int]]
    finish_reasons: list[FinishReason]
    logprobs: list[list[float]] | None = None
    texts: list[str] | None = None


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] | None = None,
    rng: jax.Array | None = None,
    end_tokens: Sequence[int] = (),
    num_samples: int = 1,
    logprobs: bool = False,
    stop: Sequence[str] = (),
    tokenizer: AnyTokenizer | None = None,
    allowed_tokens: AllowedTokens | None = None,
    prefix: Prefix | None = None,
    cache_dtype: jax.typing.DTypeLike | None = None,
    ring_cache: bool = False,
    on_token: Callable[[int, int], None] | None = None,
) -> GenerationResult:
    """Continues prompts of any lengths, as one batch.

    The prompts are read in one call, padded to one of a few lengths, and the tokens
    are chosen in one compiled loop; both are compiled once for each such shape. Each
    row gets the tokens that it would get alone.

    Args:
      model: The model.
      params: Its parameters.
      prompts: One list of token ids for each row, none empty.
      max_new_tokens: How many tokens a row gets at most.
      sampling: How tokens are chosen: one ``Sampling``, or one for each prompt;
        greedy if ``None``.
      rng: PRNG key, needed unless the choice is greedy. One key serves every row, so
        that a row's tokens depend on its prompt and the key alone, and equal prompts
        get equal tokens; an array of keys, one a prompt, gives each its own.
      end_tokens: A row ends where it chooses one of these.
      num_samples: How many rows each prompt becomes. It is read once, and the first
        row is the one that it would be alone.
      logprobs: Whether the result has log-probabilities.
      stop: Texts of which the first to come ends a row, wherever its tokens begin
        and end. The token that completes it is the row's last.
      tokenizer: Says what tokens say; needed with ``stop``.
      allowed_tokens: Called with row and its new tokens before each choice; returns
        the ids that may come next, or ``None`` for all. An end token comes only
        where it is among them.
      prefix: What all prompts go on from, as ``read_prefix`` returned it: it is not
        read again, and a prompt may be empty. It must have been read with these
        parameters, which is not looked at.
      cache_dtype: Of the cache, as ``Model.init_cache``: ``"int8"`` takes a byte a
        number, and rounds. Without ``prefix``, whose cache has its form.
      ring_cache: Whether the cache has rings, as ``Model.init_cache``: the same
        tokens, in less memory where layers have sliding windows. Without ``prefix``.
      on_token: Called with row and token as each is chosen.

    Returns:
      The new tokens of each row, why each ended, and what else was asked for.

    Raises:
      ValueError: A prompt is empty, holds an id out of range, or leaves no room for
        ``max_new_tokens``; another model read the prefix; or an argument is out of
        what is allowed.
      FloatingPointError: The model's logits were NaN.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> result = generate(model, params, [[1, 2, 3], [4]], max_new_tokens=5)
      >>> [len(tokens) for tokens in result.tokens], result.finish_reasons
      ([5, 5], ['length', 'length'])
    """
    by_token = on_token is not None or allowed_tokens is not None
    request = checked_request(
        model,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        rng=rng,
        end_tokens=end_tokens,
        num_samples=num_samples,
        stop=stop,
        tokenizer=tokenizer,
        allowed_tokens=allowed_tokens,
        chunk=1 if by_token else _CHUNK_TO_STOP if len(stop) else CHUNK,
        logprobs=logprobs,
        prefix=prefix,
        cache_dtype=cache_dtype,
        ring_cache=ring_cache,
    )
    rows = [Row() for _ in range(request.num_rows)]
    for step in steps(request, rows):
        for row, new in enumerate(step.tokens):
            for token in new if on_token else ():
                on_token(row, token)  # type: ignore[misc]
    texts = StopStrings(stop, tokenizer) if tokenizer is not None else None
    return GenerationResult(
        tokens=[row.tokens for row in rows],
        finish_reasons=[row.reason or "length" for row in rows],
        logprobs=[row.logprobs for row in rows] if logprobs else None,
        texts=[texts.text(row.tokens) for row in rows] if texts else None,
    )


def stream(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] | None = None,
    rng: jax.Array | None = None,
    end_tokens: Sequence[int] = (),
    num_samples: int = 1,
    logprobs: bool = False,
    stop: Sequence[str] = (),
    tokenizer: AnyTokenizer | None = None,
    allowed_tokens: AllowedTokens | None = None,
    prefix: Prefix | None = None,
    cache_dtype: jax.typing.DTypeLike | None = None,
    ring_cache: bool = False,
    chunk: int = 1,
) -> Iterator[Step]:
    """Yields new tokens as they are chosen.

    Args:
      model: As ``generate``; likewise all but ``chunk``.
      params: See ``generate``.
      prompts: See ``generate``.
      max_new_tokens: See ``generate``.
      sampling: See ``generate``.
      rng: See ``generate``.
      end_tokens: See ``generate``.
      num_samples: See ``generate``.
      logprobs: Whether steps have log-probabilities.
      stop: See ``generate``. Tokens that begin a stop string are given as they come.
      tokenizer: See ``generate``.
      allowed_tokens: See ``generate``; ``chunk`` must be 1.
      prefix: See ``generate``.
      cache_dtype: See ``generate``.
      ring_cache: See ``generate``.
      chunk: How many tokens are chosen between two yields, up to 32. The tokens are
        the same whatever it is.

    Returns:
      An iterator over what each row got.

    Raises:
      ValueError: As ``generate``, at the call and not at the first token.
      FloatingPointError: The model's logits were NaN.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> steps = stream(model, params, [[1, 2, 3]], max_new_tokens=3)
      >>> [(len(step.tokens[0]), step.finish_reasons[0]) for step in steps]
      [(1, None), (1, None), (1, 'length')]
    """
    request = checked_request(
        model,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        rng=rng,
        end_tokens=end_tokens,
        num_samples=num_samples,
        stop=stop,
        tokenizer=tokenizer,
        allowed_tokens=allowed_tokens,
        chunk=chunk,
        logprobs=logprobs,
        prefix=prefix,
        cache_dtype=cache_dtype,
        ring_cache=ring_cache,
    )
    return steps(request, [Row() for _ in range(request.num_rows)])
