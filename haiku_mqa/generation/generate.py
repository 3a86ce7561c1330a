"""Generation as people call it: lists of tokens in, lists of tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.checks import check_params
from haiku_mqa.generation.loop import CHUNK, Settings, decode, prefill
from haiku_mqa.generation.sampling import Dials, Sampling
from haiku_mqa.model import Model, Params

FinishReason = Literal["end", "length"]


@dataclasses.dataclass(frozen=True)
class GenerationResult:
    """What was generated.

    Attributes:
      tokens: One list of new tokens for each prompt, ragged; the prompt and the end
        token are not among them.
      finish_reasons: For each prompt ``"end"`` where an end token came, ``"length"``
        where ``max_new_tokens`` did.

    Example:
      >>> GenerationResult(tokens=[[5, 6], []], finish_reasons=["length", "end"]).tokens
      [[5, 6], []]
    """

    tokens: list[list[int]]
    finish_reasons: list[FinishReason]


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    rng: jax.Array | None = None,
    end_tokens: Sequence[int] = (),
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
      sampling: How tokens are chosen; greedy if ``None``.
      rng: PRNG key, needed unless the choice is greedy. One key serves every row, so
        that a row's tokens depend on its prompt and the key alone, and equal prompts
        get equal tokens; an array of keys ``[B]`` gives each row its own.
      end_tokens: A row ends where it chooses one of these.
      on_token: Called with row and token as each is chosen.

    Returns:
      The new tokens of each prompt, and why each ended.

    Raises:
      ValueError: A prompt is empty, holds an id out of range, or leaves no room for
        ``max_new_tokens``; or an argument is out of what is allowed.
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
    steps = stream(
        model,
        params,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        rng=rng,
        end_tokens=end_tokens,
        chunk=1 if on_token else CHUNK,
    )
    tokens: list[list[int]] = [[] for _ in prompts]
    for step in steps:
        for row, new in enumerate(step):
            tokens[row].extend(new)
            for token in new if on_token else ():
                on_token(row, token)  # type: ignore[misc]
    reasons: list[FinishReason] = [
        "length" if len(row) == max_new_tokens else "end" for row in tokens
    ]
    return GenerationResult(tokens, reasons)


def stream(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    rng: jax.Array | None = None,
    end_tokens: Sequence[int] = (),
    chunk: int = 1,
) -> Iterator[list[list[int]]]:
    """Yields new tokens as they are chosen.

    Args:
      model: As ``generate``; likewise all but ``chunk``.
      params: See ``generate``.
      prompts: See ``generate``.
      max_new_tokens: See ``generate``.
      sampling: See ``generate``.
      rng: See ``generate``.
      end_tokens: See ``generate``.
      chunk: How many tokens are chosen between two yields, up to 32. The tokens are
        the same whatever it is.

    Returns:
      An iterator over lists of each row's new tokens; a row that ended has none.

    Raises:
      ValueError: As ``generate``, at the call and not at the first token.
      FloatingPointError: The model's logits were NaN.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> steps = stream(model, params, [[1, 2, 3]], max_new_tokens=3)
      >>> [len(step[0]) for step in steps]
      [1, 1, 1]
    """
    sampling = sampling or Sampling(temperature=0.0)
    _check_request(model, prompts, max_new_tokens, sampling, rng, end_tokens, chunk)
    check_params(params, model.param_shapes)
    settings = Settings(
        dials=Dials.of(sampling),
        rngs=None if sampling.is_greedy else _row_rngs(rng, len(prompts)),
        end_tokens=jnp.asarray(list(end_tokens), jnp.int32),
    )
    return _steps(model, params, prompts, max_new_tokens, settings, chunk)


def bucket(length: int) -> int:
    """Returns the padded length for a length: a power of two, or three quarters of one.

    Args:
      length: In tokens, >= 1.

    Returns:
      The least bucket of at least ``length``, and at least 16.

    Example:
      >>> [bucket(length) for length in (1, 17, 25, 100, 130)]
      [16, 24, 32, 128, 192]
    """
    power = 16
    while power < length:
        power *= 2
    return max(16, power * 3 // 4 if power * 3 // 4 >= length else power)


def _steps(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    settings: Settings,
    chunk: int,
) -> Iterator[list[list[int]]]:
    # NumPy weights would be copied to the device at every call.
    params = jax.device_put(params)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths.max())
    tokens = np.zeros((len(prompts), bucket(longest)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    cache = model.init_cache(len(prompts), bucket(longest + max_new_tokens))

    state = prefill(model, params, tokens, lengths, cache, settings)
    ends = set(np.asarray(settings.end_tokens).tolist())
    yield _new_tokens(np.asarray(state.token)[:, None], ends)
    left = max_new_tokens - 1
    while left > 0 and not bool(state.finished.all()):
        count = min(chunk, left)
        state, chosen = decode(model, params, state, jnp.int32(count), settings)
        yield _new_tokens(np.asarray(chosen)[:, :count], ends)
        left -= count


def _new_tokens(chosen: np.ndarray, ends: set[int]) -> list[list[int]]:
    if (chosen == -1).any():
        row = int((chosen == -1).any(axis=1).argmax())
        raise FloatingPointError(
            f"the logits of row {row} are NaN; check the parameters with "
            "haiku_mqa.checks.check_finite"
        )
    return [[int(t) for t in row if t >= 0 and t not in ends] for row in chosen]


def _row_rngs(rng: jax.Array | None, rows: int) -> jax.Array:
    keys = jnp.asarray(rng)
    is_key = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not is_key and keys.dtype != jnp.uint32:
        raise ValueError(
            f"rng must be PRNG keys, as jax.random.key(seed) makes them, got {rng!r}"
        )
    if not is_key:
        keys = jax.random.wrap_key_data(keys)
    if keys.ndim == 0:
        return jnp.broadcast_to(keys, (rows,))
    if keys.shape != (rows,):
        raise ValueError(
            f"rng must be one PRNG key, or one for each of {rows} prompts, "
            f"got shape {list(keys.shape)}"
        )
    return keys


def _check_request(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    rng: jax.Array | None,
    end_tokens: Sequence[int],
    chunk: int,
) -> None:
    config = model.config
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int | np.integer)
        or max_new_tokens < 1
    ):
        raise ValueError(
            f"max_new_tokens must be a whole number >= 1, got {max_new_tokens}"
        )
    if not 1 <= chunk <= CHUNK:
        raise ValueError(f"chunk must be from 1 to {CHUNK}, got {chunk}")
    if not sampling.is_greedy and rng is None:
        raise ValueError(
            f"rng must be given where temperature is above 0, got temperature = "
            f"{sampling.temperature}"
        )
    if not len(prompts):
        raise ValueError("prompts must hold at least one prompt, got none")
    for row, prompt in enumerate(prompts):
        name = f"prompts[{row}]"
        if isinstance(prompt, str) or not hasattr(prompt, "__len__"):
            raise ValueError(
                f"{name} must be a list of token ids, got {prompt!r}; a single "
                "prompt is a list of one list"
            )
        if not len(prompt):
            raise ValueError(f"{name} must hold at least one token id, and is empty")
        _check_ids(name, prompt, config.vocab_size)
        if len(prompt) + max_new_tokens > config.max_length:
            raise ValueError(
                f"{name} has {len(prompt)} tokens and max_new_tokens is "
                f"{max_new_tokens}: together more than max_length = "
                f"{config.max_length}"
            )
    _check_ids("end_tokens", end_tokens, config.vocab_size)


def _check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    for place, token in enumerate(ids):
        whole = isinstance(token, int | np.integer)
        if not whole or not 0 <= token < vocab_size:
            raise ValueError(
                f"{name} must hold ids from 0 to {vocab_size - 1} (vocab_size = "
                f"{vocab_size}), got {token} at {place}"
            )
