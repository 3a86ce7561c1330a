"""Many prompts at once over a fixed number of slots, each on its own way.

An engine has four parts: requests are checked at the door (``_door``), wait in line
for a slot and hold it (``_line``), and get their tokens by turns (``_turns``). Whoever
waits makes the turns, or a thread in the background (``_background``).

Any thread may call anything. Two locks keep it so, always taken in this order:

1. The turns' ``lock``, by whoever makes a turn, for as long as the turn takes. What
   slots hold on the device changes under it alone, and so does which row is whose.
2. The line's, for as long as it takes to look or to write down: who waits, who has
   which slot, how far each request is. No device works, and no one outside is called,
   while it is held; so one can join and leave while a turn is made.

A request wakes whoever waits for it, and tells its ``on_progress``, when neither the
line's lock nor any other but the turns' is held. A request that leaves amid a turn is
gone at once: what the turn makes for it is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import jax

from haiku_mqa._arguments import whole_number
from haiku_mqa.checks import check_params
from haiku_mqa.generation._background import Background
from haiku_mqa.generation._door import checked_request
from haiku_mqa.generation._line import Line
from haiku_mqa.generation._turns import Turns
from haiku_mqa.generation.request import Request
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.model import Model, Params


class Engine:
    """Continues prompts that come and go, in one batch of slots.

    *Continuous batching* (Yu et al. 2022, *Orca*): a request takes a free slot as soon
    as there is one and leaves it at its end, while the others go on; no program is
    compiled for that. A turn reads a piece of a prompt, or several short prompts, and
    then chooses a few tokens in every slot that has read its own. Each request has its
    own sampling and seed, and gets the tokens that ``generate`` gives it alone with
    the PRNG key ``jax.random.key(seed)``, but for ties that rounding decides.

    Whoever waits for a request makes the turns. With ``start``, or in a ``with``
    block, a thread in the background makes them. All methods may be called from any
    thread.

    Attributes:
      model: The model.
      slots: How many requests are continued at once.
      max_length: How many tokens a slot has room for, prompt and new ones together.
      max_waiting: How many requests may wait for a slot.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> params = model.init(jax.random.key(0))
      >>> engine = Engine(model, params, slots=2, max_length=32)
      >>> greedy = engine.submit([1, 2, 3], max_new_tokens=5)
      >>> drawn = engine.submit(
      ...     [4], max_new_tokens=3, sampling=Sampling(temperature=0.8), seed=7)
      >>> engine.run()
      >>> len(greedy.tokens), drawn.result().finish_reason
      (5, 'length')
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        slots: int = 8,
        max_length: int | None = None,
        max_waiting: int = 64,
        prefill_chunk: int = 64,
        decode_chunk: int = 8,
        cache_dtype: jax.typing.DTypeLike | None = None,
        ring_cache: bool = False,
    ):
        """Makes room for a batch.

        Args:
          model: The model.
          params: Its parameters.
          slots: B, how many requests are continued at once.
          max_length: S, how many tokens a slot has room for; the model's if ``None``.
          max_waiting: How many requests may wait for a slot.
          prefill_chunk: T, how many tokens of prompts are read in one turn.
          decode_chunk: How many tokens each slot chooses in one turn; fewer while
            prompts wait to be read.
          cache_dtype: Of keys and values, as ``Model.init_cache``; ``"int8"`` takes a
            quarter of float32's bytes, and rounds.
          ring_cache: Whether layers with a sliding window keep their window alone, as
            ``Model.init_cache``. Such a layer has forgotten what another request
            could begin with, so every prompt is then read from its first token.

        Raises:
          ValueError: A number is out of what is allowed, keys and values cannot be of
            that dtype, or the parameters do not fit the model.
        """
        longest = model.config.max_length
        self.model = model
        self.slots = whole_number("slots", slots)
        self.max_length = (
            longest
            if max_length is None
            else whole_number("max_length", max_length, 2, longest)
        )
        self.max_waiting = whole_number("max_waiting", max_waiting, 0)
        prefill_chunk = whole_number("prefill_chunk", prefill_chunk)
        decode_chunk = whole_number("decode_chunk", decode_chunk)
        if not isinstance(ring_cache, bool):
            raise ValueError(f"ring_cache must be True or False, got {ring_cache!r}")
        check_params(params, model.param_shapes)
        self._line = Line(self.slots, self.max_waiting, keeps_prefixes=not ring_cache)
        self._turns = Turns(
            model,
            params,
            self._line,
            slots=self.slots,
            max_length=self.max_length,
            prefill_chunk=prefill_chunk,
            decode_chunk=decode_chunk,
            cache_dtype=cache_dtype,
            ring_cache=ring_cache,
        )
        self._background = Background(self._line, self.step)

    # --- Requests ------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int | None = None,
        end_tokens: Sequence[int] = (),
        logprobs: bool = False,
        top_logprobs: int = 0,
        on_progress: Callable[[], None] | None = None,
    ) -> Request:
        """Takes a prompt to continue.

        What the prompt has in common with one that was read before, and that a slot
        still holds, is not read anew.

        Args:
          prompt: Token ids, not empty.
          max_new_tokens: How many tokens it gets at most.
          sampling: How they are chosen; greedy if ``None``.
          seed: From 0 to 2**32 - 1, needed unless the choice is greedy.
          end_tokens: It ends where it chooses one of these.
          logprobs: Whether it is told how likely its tokens are.
          top_logprobs: How many of the likeliest tokens it is told beside each, up to
            20; more than 0 only with ``logprobs``.
          on_progress: Called when tokens have come and when it has ended, by the
            thread that made the turn or cancelled it. It must neither block nor raise.

        Returns:
          The request, to iterate over, to wait for or to cancel.

        Raises:
          ValueError: The prompt is empty, holds an id out of range, or leaves no room
            for ``max_new_tokens``; or an argument is out of what is allowed.
          EngineFull: As many requests wait already as may.
          EngineStopped: ``stop`` was called.
        """
        request = checked_request(
            self,
            self.model.config,
            self.max_length,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            end_tokens=end_tokens,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            on_progress=on_progress,
        )
        self._line.join(request)
        return request

    def cancel(self, request: Request, /) -> bool:
        """Ends a request as it is; ``request.cancel()`` is the same.

        Args:
          request: One of this engine's.

        Returns:
          Whether it was still open.
        """
        return self._line.leave(request)

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a slot."""
        return self._line.num_waiting

    @property
    def num_running(self) -> int:
        """How many slots are taken."""
        return self._line.num_running

    @property
    def is_busy(self) -> bool:
        """Whether any request is open."""
        return self._line.is_busy

    # --- Turns ---------------------------------------------------------------------

    def step(self) -> bool:
        """Makes one turn: free slots are taken, prompts are read, tokens are chosen.

        Returns:
          Whether any request is still open.

        Raises:
          Exception: What the device raised. All that was open has ended with it.
        """
        self._turns.make()
        return self.is_busy

    def run(self) -> None:
        """Makes turns until no request is open.

        Raises:
          Exception: As ``step``.
        """
        while self.step():
            pass

    def warm_up(self) -> None:
        """Compiles all that turns need, so that no request waits for that."""
        self._turns.warm_up()

    def help_along(self) -> bool:
        """Makes a turn where no thread in the background does.

        Returns:
          Whether it made one.
        """
        if self._background.is_running:
            return False
        self.step()
        return True

    # --- In the background ---------------------------------------------------------

    def start(self) -> Self:
        """Has a thread make the turns, until ``stop``.

        Returns:
          The engine.

        Raises:
          RuntimeError: One does already.
        """
        self._background.start()
        return self

    def stop(self, *, finish: bool = True, timeout: float | None = None) -> None:
        """Takes no more requests, and returns when none is open.

        Args:
          finish: Whether open requests come to their end; else they are cancelled.
          timeout: Seconds after which those that are still open are cancelled.
        """
        self._background.stop(finish=finish, timeout=timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(finish=kind is None)
