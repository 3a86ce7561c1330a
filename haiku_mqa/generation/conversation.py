"""One text that grows by turns, and whose cache is kept between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.cache import KVCache
from haiku_mqa.checks import check_params, check_tokens
from haiku_mqa.generation._padding import padded
from haiku_mqa.generation._past import tokens_held
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.loop import CHUNK, Before, Settings, State, decode, prefill
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.model import Model, Params

_LEAST_ROOM = 256  # in tokens: each size of the cache is a program of its own


class Conversation:
    """A text that is asked for more, again and again.

    What was read stays in the cache. A turn gives the whole text so far, and only
    what comes after the part that the cache knows is read: nothing is read twice.
    Where the text differs from what was read, as where an answer is spelled by other
    tokens than it was chosen in, the cache forgets from there on.

    The answer is the one that ``generate`` gives to the same tokens.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256))
      >>> params = model.init(jax.random.key(0))
      >>> conversation = Conversation(model, params)
      >>> text = [1, 2, 3]
      >>> for tokens in conversation.ask(text, max_new_tokens=4):
      ...     text = text + tokens
      >>> conversation.tokens == text[:-1]  # the last is chosen, and not yet read
      True
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        sampling: Sampling | None = None,
        end_tokens: Sequence[int] = (),
    ):
        """Begins with nothing read.

        Args:
          model: The model.
          params: Its parameters.
          sampling: How tokens are chosen; greedy if ``None``.
          end_tokens: An answer ends where one of these is chosen.

        Raises:
          ValueError: The parameters are not the model's, or an end token is out of
            range.
        """
        check_params(params, model.param_shapes)
        self._check_ids("end_tokens", end_tokens, model.config.vocab_size)
        self._model = model
        # NumPy weights would be copied to the device at every call.
        self._params = jax.device_put(params)
        self._sampling = sampling or Sampling(temperature=0.0)
        self._ends = tuple(end_tokens)
        self._cache: KVCache | None = None
        self._tokens: list[int] = []
        self._reused = 0
        self._answering: Generator[list[int], None, None] | None = None

    @property
    def tokens(self) -> list[int]:
        """What the cache knows: all that was read."""
        return list(self._tokens)

    @property
    def reused(self) -> int:
        """How many tokens of the last text the cache knew, from its first answer on."""
        return self._reused

    def reset(self) -> None:
        """Forgets all that was read."""
        self._end_answer()
        self._cache, self._tokens = None, []

    def ask(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        rng: jax.Array | None = None,
        chunk: int = 1,
    ) -> Iterator[list[int]]:
        """Reads what is new in a text, and yields the tokens that follow it.

        Whoever stops listening stops the answer: what came so far stays read.

        Args:
          tokens: The whole text so far, earlier answers included.
          max_new_tokens: How many tokens come at most.
          rng: PRNG key, needed unless the choice is greedy.
          chunk: How many tokens are chosen between two yields, up to 32.

        Returns:
          An iterator over lists of new tokens; the end token is not among them.

        Raises:
          ValueError: The text is empty, holds an id out of range, or leaves no room
            for ``max_new_tokens``; or an argument is out of what is allowed. It is
            raised at the call.
          FloatingPointError: The model's logits were NaN.
        """
        config = self._model.config
        if not len(tokens):
            raise ValueError("tokens must hold at least one token id, and is empty")
        self._check_ids("tokens", tokens, config.vocab_size)
        room = config.max_length - len(tokens)
        if room < 1:
            raise ValueError(
                f"tokens must be fewer than max_length = {config.max_length}, got "
                f"{len(tokens)}: there is no room for a new one"
            )
        _check_count("max_new_tokens", max_new_tokens, room)
        _check_count("chunk", chunk, CHUNK)
        if not self._sampling.is_greedy and rng is None:
            raise ValueError(
                "rng must be given where temperature is above 0, got temperature = "
                f"{self._sampling.temperature}"
            )
        self._end_answer()
        self._answering = self._answer(
            list(map(int, tokens)), int(max_new_tokens), rng, chunk
        )
        return self._answering

    def _end_answer(self) -> None:
        if self._answering is not None:
            self._answering.close()  # it gives the cache back
            self._answering = None

    def _answer(
        self, tokens: list[int], max_new_tokens: int, rng: jax.Array | None, chunk: int
    ) -> Generator[list[int], None, None]:
        settings = self._settings(rng)
        state = self._read(tokens, len(tokens) + max_new_tokens, settings)
        token = int(state.token[0])
        left = max_new_tokens - 1
        try:
            yield self._checked([token])
            while left > 0 and not bool(state.finished.all()):
                count = min(chunk, left)
                # Interrupted in here, the cache is lost and what it knew with it:
                # the next turn reads everything again.
                read, self._tokens = self._tokens, []
                given, state = state, None
                state, chosen = decode(
                    self._model, self._params, given, jnp.int32(count), settings
                )
                new = [t for t in np.asarray(chosen.tokens)[0].tolist() if t != -2]
                self._tokens = [*read, token, *new[:-1]]
                token = new[-1]
                left -= count
                yield self._checked(new)
        finally:
            self._cache = None if state is None else state.cache

    def _read(self, tokens: list[int], length: int, settings: Settings) -> State:
        """Reads what the cache does not know, and chooses a token."""
        cache, known = self._cache, self._tokens
        self._cache, self._tokens = None, []  # given away, and may be lost
        pairs = enumerate(zip(known, tokens, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(known), len(tokens)))
        # One token is read in any case: the next is chosen by what comes of it.
        same = min(same, len(tokens) - 1)
        if cache is None or same == 0:
            same, cache = 0, self._model.init_cache(1, self._room(length))
        elif cache.capacity < length:
            cache = cache.resized(self._room(length))
        self._reused = same
        cache = dataclasses.replace(cache, lengths=jnp.full(1, same, jnp.int32))
        before = None
        if settings.dials.needs_counts:  # for penalties, all of the text was read
            held = tokens_held(tokens[:same], self._model.config.vocab_size)
            before = Before(held)
        new, lengths = padded([tokens[same:]])
        state = prefill(
            self._model, self._params, new, lengths, cache, settings, False, before
        )
        self._tokens = tokens
        return state

    def _room(self, length: int) -> int:
        room = _LEAST_ROOM
        while room < length:
            room *= 2
        return min(room, self._model.config.max_length)

    def _settings(self, rng: jax.Array | None) -> Settings:
        rngs = None
        if not self._sampling.is_greedy and rng is not None:
            is_key = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
            rngs = (rng if is_key else jax.random.wrap_key_data(rng))[None]
        ends = jnp.asarray(self._ends, jnp.int32)
        return Settings(
            dials=Dials.of([self._sampling], self._model.config.vocab_size),
            rngs=rngs,
            end_tokens=ends,
        )

    def _checked(self, chosen: list[int]) -> list[int]:
        if -1 in chosen:
            raise FloatingPointError(
                "the logits are NaN; check the parameters with "
                "haiku_mqa.checks.check_finite"
            )
        return [token for token in chosen if token not in self._ends]

    @staticmethod
    def _check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
        if len(ids):
            check_tokens(name, np.asarray(ids)[None], vocab_size)


def _check_count(name: str, value: int, most: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value}")
