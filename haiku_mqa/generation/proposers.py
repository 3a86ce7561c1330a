"""Who proposes tokens: a smaller model, or the text so far."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.cache import KVCache
from haiku_mqa.checks import check_params
from haiku_mqa.generation.acceptance import Draw, Proposal, propose_one
from haiku_mqa.model import Model, Params


class Proposer(Protocol):
    """What guesses the next tokens of each row: a pytree with these methods.

    Attributes:
      num_tokens: P, how many tokens are proposed at once at most.
    """

    @property
    def num_tokens(self) -> int: ...  # noqa: D102 - told by the class

    def check(self, model: Model, length: int) -> None:
        """Raises ``ValueError`` where it cannot propose for a model.

        Args:
          model: Whose tokens are guessed.
          length: Of the longest row in the end, in tokens.
        """
        ...

    def begin(
        self, tokens: jax.Array, real: jax.Array, capacity: int
    ) -> KVCache | None:
        """Returns what is remembered of the prompts.

        Args:
          tokens: int32 ``[B, T]``, right-padded.
          real: bool ``[B, T]``, which of them are no padding.
          capacity: For how many tokens of a row there must be room.
        """
        ...

    def propose(
        self,
        text: jax.Array,
        known: jax.Array,
        room: jax.Array,
        memory: KVCache | None,
        counts: jax.Array,
        draw: Draw,
    ) -> Proposal:
        """Returns tokens that may come next.

        Args:
          text: int32 ``[B, S]``, prompts and what was chosen.
          known: int32 ``[B]``, how many tokens of each row that is.
          room: int32 ``[B]``, how many proposals are of use, at most P.
          memory: As ``begin`` or an earlier call left it, rolled back to ``known - 1``
            tokens or fewer.
          counts: int32 ``[B]``, how many tokens each row has chosen.
          draw: How the model chooses.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """A smaller model that proposes what the larger one then reads at once.

    Follows Leviathan et al. 2023, *Fast Inference from Transformers via Speculative
    Decoding*, and Chen et al. 2023, *Accelerating Large Language Model Decoding with
    Speculative Sampling*.

    Attributes:
      model: The smaller model, over the same tokens.
      params: Its parameters.
      num_tokens: How many tokens it proposes at once at most.

    Raises:
      ValueError: A field is out of what is allowed.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> small = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> Draft(small, small.init(jax.random.key(0))).num_tokens
      4
    """

    model: Model = dataclasses.field(metadata={"static": True})
    params: Params
    num_tokens: int = dataclasses.field(default=4, metadata={"static": True})

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise ValueError(
                f"model must be a Model, as build makes it, got {self.model!r}"
            )
        _check_whole("num_tokens", self.num_tokens)

    def check(self, model: Model, length: int) -> None:
        """Raises ``ValueError`` where it cannot propose for a model.

        Args:
          model: Whose tokens are guessed.
          length: Of the longest row in the end, in tokens.

        Raises:
          ValueError: It is over other tokens, has too short a context, or parameters
            that are not its own.
        """
        own, other = self.model.config, model.config
        if own.vocab_size != other.vocab_size:
            raise ValueError(
                f"the draft's vocab_size must be the model's, {other.vocab_size}, "
                f"got {own.vocab_size}"
            )
        if length > own.max_length:
            raise ValueError(
                f"the draft's max_length must be at least {length}, the longest prompt "
                f"and max_new_tokens together, got {own.max_length}"
            )
        try:
            check_params(self.params, self.model.param_shapes)
        except ValueError as error:
            raise ValueError(f"of the draft: {error}") from None

    def begin(self, tokens: jax.Array, real: jax.Array, capacity: int) -> KVCache:
        """Returns the draft's own cache, with the prompts read.

        Args:
          tokens: int32 ``[B, T]``, right-padded.
          real: bool ``[B, T]``, which of them are no padding.
          capacity: For how many tokens of a row there must be room.
        """
        rows = tokens.shape[0]
        cache = self.model.init_cache(rows, capacity)
        nowhere = jnp.zeros((rows, 0), jnp.int32)
        out = self.model.apply(
            self.params, None, tokens, mask=real, cache=cache, logits_at=nowhere
        )
        return out.cache or cache

    def propose(
        self,
        text: jax.Array,
        known: jax.Array,
        room: jax.Array,
        memory: KVCache | None,
        counts: jax.Array,
        draw: Draw,
    ) -> Proposal:
        """Returns tokens that the draft would choose, one after another.

        Args:
          text: int32 ``[B, S]``, prompts and what was chosen.
          known: int32 ``[B]``, how many tokens of each row that is.
          room: int32 ``[B]``, how many proposals are of use, at most P.
          memory: The draft's cache, one or two tokens behind.
          counts: int32 ``[B]``, how many tokens each row has chosen.
          draw: How the model chooses.

        Raises:
          ValueError: There is no cache.
        """
        if memory is None:
            raise ValueError("memory must be the draft's cache, got None")
        # Where all proposals stood, the last of them was never read by the draft.
        behind = known - memory.lengths
        places = memory.lengths[:, None] + jnp.arange(2)
        unread = jnp.take_along_axis(
            text, jnp.minimum(places, text.shape[1] - 1), axis=1
        )
        out = self.model.apply(
            self.params,
            None,
            jnp.maximum(unread, 0),
            mask=(jnp.arange(2) < behind[:, None]) & (room > 0)[:, None],
            cache=memory,
            logits_at=jnp.clip(behind - 1, 0, 1)[:, None],
        )
        first, score = propose_one(out.logits[:, 0], counts, draw)

        def advance(
            carry: tuple[KVCache, jax.Array], place: jax.Array
        ) -> tuple[tuple[KVCache, jax.Array], tuple[jax.Array, jax.Array | None]]:
            memory, token = carry
            out = self.model.apply(
                self.params,
                None,
                jnp.maximum(token, 0)[:, None],
                mask=(place < room)[:, None],
                cache=memory,
            )
            token, score = propose_one(out.logits[:, 0], counts + place, draw)
            return (out.cache or memory, token), (token, score)

        (memory, _), more = jax.lax.scan(
            advance,
            (out.cache or memory, first),
            jnp.arange(1, self.num_tokens, dtype=jnp.int32),
        )
        tokens, scores = jax.tree.map(
            lambda one, rest: jnp.concatenate([one[:, None], rest.swapaxes(0, 1)], 1),
            (first, score),
            more,
        )
        return Proposal(tokens, room, scores, memory)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """The text's own past proposes: what followed the last time it went like this.

    Looks for the longest run of up to ``ngram`` tokens that ends the text and stands
    earlier in it too, and proposes what came after (Saxena 2023, *Prompt Lookup
    Decoding*). Of runs of one length it takes one that enough tokens follow, and of
    those the latest. It costs next to nothing, and helps where a text repeats itself or
    its prompt.

    Attributes:
      ngram: The longest run that is looked for, in tokens.
      num_tokens: How many tokens are proposed at once at most.

    Raises:
      ValueError: A field is out of what is allowed.

    Example:
      >>> PromptLookup(ngram=2).num_tokens
      8
      >>> PromptLookup(ngram=0)
      Traceback (most recent call last):
      ValueError: ngram must be a whole number >= 1, got 0
    """

    ngram: int = dataclasses.field(default=3, metadata={"static": True})
    num_tokens: int = dataclasses.field(default=8, metadata={"static": True})

    def __post_init__(self) -> None:
        _check_whole("ngram", self.ngram)
        _check_whole("num_tokens", self.num_tokens)

    def check(self, model: Model, length: int) -> None:
        """Accepts any model.

        Args:
          model: Whose tokens are guessed.
          length: Of the longest row in the end, in tokens.
        """

    def begin(self, tokens: jax.Array, real: jax.Array, capacity: int) -> None:
        """Remembers nothing: the text is enough.

        Args:
          tokens: int32 ``[B, T]``, right-padded.
          real: bool ``[B, T]``, which of them are no padding.
          capacity: For how many tokens of a row there must be room.
        """

    def propose(
        self,
        text: jax.Array,
        known: jax.Array,
        room: jax.Array,
        memory: KVCache | None,
        counts: jax.Array,
        draw: Draw,
    ) -> Proposal:
        """Returns what followed where the text last went as it goes now.

        Args:
          text: int32 ``[B, S]``, prompts and what was chosen.
          known: int32 ``[B]``, how many tokens of each row that is.
          room: int32 ``[B]``, how many proposals are of use, at most P.
          memory: Nothing.
          counts: int32 ``[B]``, how many tokens each row has chosen; not needed.
          draw: How the model chooses; not needed.
        """
        size, last = text.shape[1], known[:, None] - 1
        places = jnp.arange(size)
        back = jnp.arange(self.ngram)
        ends = places[:, None] - back  # [S, n]
        runs = text[:, jnp.maximum(ends, 0)]  # [B, S, n], backwards from each place
        tail = jnp.take_along_axis(text, jnp.maximum(last - back, 0), axis=1)  # [B, n]
        same = (runs == tail[:, None, :]) & (ends >= 0)
        length = same.astype(jnp.int32).cumprod(axis=-1).sum(axis=-1, dtype=jnp.int32)
        length = jnp.where(places < last, length, 0)  # [B, S]

        following = jnp.clip(last - places, 0, self.num_tokens)
        rank = length * (self.num_tokens + 1) + jnp.where(length > 0, following, 0)
        # The first of the greatest, counted from the end, is the latest.
        place = size - 1 - rank[:, ::-1].argmax(axis=1).astype(jnp.int32)[:, None]
        found = jnp.take_along_axis(length, place, axis=1)[:, 0] > 0
        count = jnp.minimum(room, known - 1 - place[:, 0])
        copied = place + 1 + jnp.arange(self.num_tokens)
        return Proposal(
            tokens=jnp.take_along_axis(text, jnp.minimum(copied, size - 1), axis=1),
            lengths=jnp.where(found, count, 0),
            scores=None,
            memory=None,
        )


def _check_whole(name: str, value: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
