"""What one call of generation asks for, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.checks import check_params
from haiku_mqa.config import DecoderConfig
from haiku_mqa.generation._past import Past, checked_past
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.generation.prefix import Prefix
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.generation.stop import StopStrings
from haiku_mqa.model import Model, Params
from haiku_mqa.text import AnyTokenizer

AllowedTokens = Callable[[int, list[int]], Sequence[int] | np.ndarray | None]
_GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for, row by row; B is prompts times samples.

    Attributes:
      model: The model.
      params: Its parameters.
      prompts: P lists of token ids.
      max_new_tokens: How many tokens a row gets at most.
      samplings: One for each of B rows.
      rngs: PRNG keys ``[B]``; ``None`` where every row is greedy.
      end_tokens: A row ends where it chooses one of these.
      num_samples: How many rows each prompt becomes.
      stops: What else ends a row; ``None`` is nothing.
      allowed_tokens: Row and its new tokens to what may come next.
      chunk: How many tokens are chosen between two looks by the host.
      with_logprobs: Whether log-probabilities are wanted.
      past: What every row had read, and what it reads into.
    """

    model: Model
    params: Params
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    samplings: Sequence[Sampling]
    rngs: jax.Array | None
    end_tokens: Sequence[int]
    num_samples: int
    stops: StopStrings | None
    allowed_tokens: AllowedTokens | None
    chunk: int
    with_logprobs: bool
    past: Past

    @property
    def num_rows(self) -> int:
        """B, rows in all."""
        return len(self.samplings)

    @property
    def forbids(self) -> bool:
        """Whether some token may be out of play whatever its logit is."""
        biased = any(sampling.logit_bias for sampling in self.samplings)
        return biased or self.allowed_tokens is not None


def checked_request(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] | None,
    rng: jax.Array | None,
    end_tokens: Sequence[int],
    num_samples: int,
    stop: Sequence[str],
    tokenizer: AnyTokenizer | None,
    allowed_tokens: AllowedTokens | None,
    chunk: int,
    logprobs: bool = False,
    prefix: Prefix | None = None,
    cache_dtype: jax.typing.DTypeLike | None = None,
    ring_cache: bool = False,
) -> Request:
    """Returns what is asked for, or says what is wrong with it.

    Args:
      model: As ``generate``; likewise all but ``chunk``.
      params: See there.
      prompts: See there.
      max_new_tokens: See there.
      sampling: See there.
      rng: See there.
      end_tokens: See there.
      num_samples: See there.
      stop: See there.
      tokenizer: See there.
      allowed_tokens: See there.
      chunk: As ``stream``.
      logprobs: As ``generate``.
      prefix: See there.
      cache_dtype: See there.
      ring_cache: See there.

    Returns:
      The request.

    Raises:
      ValueError: Something is out of what is allowed.
    """
    whole_number("max_new_tokens", max_new_tokens)
    if not 1 <= chunk <= CHUNK:
        raise ValueError(f"chunk must be from 1 to {CHUNK}, got {chunk}")
    if allowed_tokens is not None and chunk != 1:
        raise ValueError(f"chunk must be 1 with allowed_tokens, got {chunk}")
    num_samples = whole_number("num_samples", num_samples)
    past = checked_past(model, prefix, cache_dtype, ring_cache)
    check_prompts(prompts, max_new_tokens, model.config, len(past.tokens))
    check_ids("end_tokens", end_tokens, model.config.vocab_size)
    samplings = _one_a_prompt(sampling, len(prompts))
    for each in samplings:
        _check_bias(each, model.config.vocab_size)
    drawn = [each for each in samplings if not each.is_greedy]
    if drawn and rng is None:
        raise ValueError(
            f"rng must be given where temperature is above 0, got temperature = "
            f"{drawn[0].temperature}"
        )
    if len(stop) and tokenizer is None:
        raise ValueError("tokenizer must be given with stop, got None")
    stops = None if tokenizer is None else StopStrings(stop, tokenizer)
    check_params(params, model.param_shapes)
    return Request(
        model=model,
        params=params,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        samplings=[each for each in samplings for _ in range(num_samples)],
        rngs=row_rngs(rng, len(prompts), num_samples) if drawn else None,
        end_tokens=end_tokens,
        num_samples=num_samples,
        stops=stops if len(stop) else None,
        allowed_tokens=allowed_tokens,
        chunk=chunk,
        with_logprobs=logprobs,
        past=past,
    )


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises ``ValueError`` where an id is no token's.

    Args:
      name: What to call them.
      ids: Token ids.
      vocab_size: V.

    Raises:
      ValueError: Names the first id that is out of range, and where it stands.
    """
    for place, token in enumerate(ids):
        whole = isinstance(token, int | np.integer)
        if not whole or not 0 <= token < vocab_size:
            raise ValueError(
                f"{name} must hold ids from 0 to {vocab_size - 1} (vocab_size = "
                f"{vocab_size}), got {token} at {place}"
            )


def check_prompts(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    config: DecoderConfig,
    before: int = 0,
) -> None:
    """Raises ``ValueError`` where a prompt cannot be continued.

    Args:
      prompts: One list of token ids for each row.
      max_new_tokens: How many tokens follow at most.
      config: Of the model.
      before: How many tokens each row had read; where there are any, a prompt may be
        empty.

    Raises:
      ValueError: Names the first prompt that is empty, too long or none.
    """
    if not len(prompts):
        raise ValueError("prompts must hold at least one prompt, got none")
    for row, prompt in enumerate(prompts):
        name = f"prompts[{row}]"
        if isinstance(prompt, str) or not hasattr(prompt, "__len__"):
            raise ValueError(
                f"{name} must be a list of token ids, got {prompt!r}; a single "
                "prompt is a list of one list"
            )
        if not before and not len(prompt):
            raise ValueError(f"{name} must hold at least one token id, and is empty")
        check_ids(name, prompt, config.vocab_size)
        if before + len(prompt) + max_new_tokens > config.max_length:
            behind = f" behind a prefix of {before}" if before else ""
            raise ValueError(
                f"{name} has {len(prompt)} tokens{behind} and max_new_tokens is "
                f"{max_new_tokens}: together more than max_length = "
                f"{config.max_length}"
            )


def _one_a_prompt(
    sampling: Sampling | Sequence[Sampling] | None, prompts: int
) -> list[Sampling]:
    if sampling is None or isinstance(sampling, Sampling):
        return [sampling or _GREEDY] * prompts
    samplings = list(sampling)
    if len(samplings) != prompts:
        raise ValueError(
            f"sampling must be one Sampling, or one for each of {prompts} prompts, "
            f"got {len(samplings)}"
        )
    for row, each in enumerate(samplings):
        if not isinstance(each, Sampling):
            raise ValueError(f"sampling[{row}] must be a Sampling, got {each!r}")
    return samplings


def _check_bias(sampling: Sampling, vocab_size: int) -> None:
    bias = sampling.logit_bias or {}
    check_ids("logit_bias", list(bias), vocab_size)
    if list(bias.values()).count(-math.inf) == vocab_size:
        raise ValueError(
            f"logit_bias must leave a token in play, got -inf for all {vocab_size}"
        )


def row_rngs(rng: jax.Array | None, prompts: int, samples: int) -> jax.Array:
    """Returns the PRNG key ``[B]`` of each row, of one key or one for each prompt.

    Args:
      rng: What was given.
      prompts: How many there are.
      samples: Of each; the first has its prompt's own key.

    Raises:
      ValueError: They are no PRNG keys, or too many or too few.
    """
    keys = jnp.asarray(rng)
    is_key = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not is_key and keys.dtype != jnp.uint32:
        raise ValueError(
            f"rng must be PRNG keys, as jax.random.key(seed) makes them, got {rng!r}"
        )
    if not is_key:
        keys = jax.random.wrap_key_data(keys)
    if keys.shape not in ((), (prompts,)):
        raise ValueError(
            f"rng must be one PRNG key, or one for each of {prompts} prompts, "
            f"got shape {list(keys.shape)}"
        )
    keys = jnp.broadcast_to(keys, (prompts,))
    if samples == 1:
        return keys
    # The first sample is what the prompt gets where no more are asked for.
    sample = jnp.tile(jnp.arange(samples), prompts)
    keys = jnp.repeat(keys, samples)
    return jnp.where(sample == 0, keys, jax.vmap(jax.random.fold_in)(keys, sample))
