"""Many prompts at once over a fixed number of slots, each on its own way."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.checks import check_params
from haiku_mqa.errors import EngineFull, EngineStopped
from haiku_mqa.generation._slots import NONE_CHOSEN, Held, Rows, decode, read
from haiku_mqa.generation.request import Request, checked_request
from haiku_mqa.generation.sampling import Sampling
from haiku_mqa.model import Model, Params

_NARROWEST = 16  # of the widths that a piece of a prompt is padded to, in tokens
_CROWDED = 4  # while prompts wait to be read, a decode chunk is this many times shorter


class Engine:
    """Continues prompts that come and go, in one batch of slots.

    *Continuous batching* (Yu et al. 2022, *Orca*): a request takes a free slot as soon
    as there is one and leaves it at its end, while the others go on; no program is
    compiled for that. A turn reads one piece of one prompt and then chooses a few
    tokens in every slot that has read its own. Each request has its own sampling and
    seed, and gets the tokens that ``generate`` gives it alone with the PRNG key
    ``jax.random.key(seed)``, but for ties that rounding decides.

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
    ):
        """Makes room for a batch.

        Args:
          model: The model.
          params: Its parameters.
          slots: B, how many requests are continued at once.
          max_length: S, how many tokens a slot has room for; the model's if ``None``.
            Every step reads all of it, so more than is needed costs time.
          max_waiting: How many requests may wait for a slot.
          prefill_chunk: T, how many tokens of a prompt are read in one turn.
          decode_chunk: How many tokens each slot chooses in one turn; fewer while
            prompts wait to be read.

        Raises:
          ValueError: A number is out of what is allowed, or the parameters do not fit
            the model.
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
        self._prefill_chunk = whole_number("prefill_chunk", prefill_chunk)
        self._decode_chunk = whole_number("decode_chunk", decode_chunk)
        check_params(params, model.param_shapes)
        # NumPy weights would be copied to the device at every call.
        self._params = jax.device_put(params)
        self._device = Held.empty(model, self.slots, self.max_length)
        self._turn = threading.Lock()  # held by whoever makes a turn
        # What stands below changes under this lock alone, which no one holds for long.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._waiting: collections.deque[Request] = collections.deque()
        self._held: list[Request | None] = [None] * self.slots
        self._unread: dict[int, int] = {}  # slot to how much of its prompt was read
        self._thread: threading.Thread | None = None
        self._is_closed = False

    # --- Requests ------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int | None = None,
        end_tokens: Sequence[int] = (),
        on_progress: Callable[[], None] | None = None,
    ) -> Request:
        """Takes a prompt to continue.

        Args:
          prompt: Token ids, not empty.
          max_new_tokens: How many tokens it gets at most.
          sampling: How they are chosen; greedy if ``None``.
          seed: From 0 to 2**32 - 1, needed unless the choice is greedy.
          end_tokens: It ends where it chooses one of these.
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
            on_progress=on_progress,
        )
        with self._lock:
            if self._is_closed:
                raise EngineStopped("the engine is stopped, and takes no more requests")
            if len(self._waiting) >= self.max_waiting + self._held.count(None):
                raise EngineFull(
                    f"no more than max_waiting = {self.max_waiting} requests may wait "
                    f"beyond free slots; waiting: {len(self._waiting)}"
                )
            self._waiting.append(request)
            self._work.notify_all()
        return request

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """How many slots are taken."""
        return self.slots - self._held.count(None)

    @property
    def is_busy(self) -> bool:
        """Whether any request is open."""
        with self._lock:
            return self._has_open()

    def cancel(self, request: Request, /) -> bool:
        """Ends a request as it is; ``request.cancel()`` is the same.

        Args:
          request: One of this engine's.

        Returns:
          Whether it was still open.
        """
        with self._lock:
            if request.is_done or not self._let_go(request):
                return False
            request._end("cancelled")
        request._tell()
        return True

    # --- Turns ---------------------------------------------------------------------

    def step(self) -> bool:
        """Makes one turn: free slots are taken, a piece is read, tokens are chosen.

        Returns:
          Whether any request is still open.

        Raises:
          Exception: What the device raised. All that was open has ended with it.
        """
        with self._turn:
            try:
                self._admit()
                self._read_piece()
                self._choose_some()
            except BaseException as error:
                self._abandon(error)
                raise
        return self.is_busy

    def run(self) -> None:
        """Makes turns until no request is open.

        Raises:
          Exception: As ``step``.
        """
        while self.step():
            pass

    def warm_up(self) -> None:
        """Compiles all that turns need, so that the first request waits for nothing."""
        with self._turn:
            if None not in self._held:
                return  # what runs has compiled what it needs
            slot = self._held.index(None)
            idle = Rows.of([None], self.model.config.vocab_size)
            lengths = range(1, self._prefill_chunk + 1)
            for width in sorted({self._width(length) for length in lengths}):
                self._device, _ = self._read(slot, [], 0, width, idle)
            self._decode([None] * self.slots, 1)

    def _admit(self) -> None:
        with self._lock:
            for slot, held in enumerate(self._held):
                if held is None and self._waiting:
                    self._held[slot] = self._waiting.popleft()
                    self._unread[slot] = 0

    def _read_piece(self) -> None:
        with self._lock:
            if not self._unread:
                return
            slot, start = next(iter(self._unread.items()))
            request = self._held[slot]
        if request is None:
            raise RuntimeError(f"slot {slot} has a prompt to read and no request")
        piece = request.prompt[start : start + self._prefill_chunk]
        rows = Rows.of([request], self.model.config.vocab_size)
        width = self._width(len(piece))
        self._device, token = self._read(slot, piece, start, width, rows)
        if start + len(piece) < len(request.prompt):
            with self._lock:
                if self._held[slot] is request:
                    self._unread[slot] = start + len(piece)
        else:
            self._deliver({slot: (request, [int(token)])})

    def _choose_some(self) -> None:
        with self._lock:
            decoding = [
                None if slot in self._unread else held
                for slot, held in enumerate(self._held)
            ]
            crowded = bool(self._unread)
        if not any(decoding):
            return
        steps = self._decode_chunk
        chosen = self._decode(decoding, max(1, steps // _CROWDED) if crowded else steps)
        self._deliver(
            {
                slot: (request, [t for t in tokens if t != NONE_CHOSEN])
                for slot, (request, tokens) in enumerate(
                    zip(decoding, chosen.tolist(), strict=True)
                )
                if request is not None
            }
        )

    def _deliver(self, chosen: dict[int, tuple[Request, list[int]]]) -> None:
        told = []
        with self._lock:
            for slot, (request, tokens) in chosen.items():
                # Cancelled while the device was at work: its tokens are nobody's.
                if self._held[slot] is not request:
                    continue
                self._unread.pop(slot, None)
                if request._take(tokens):
                    self._held[slot] = None
                told.append(request)
        for request in told:
            request._tell()

    def _abandon(self, error: BaseException) -> None:
        """Ends all that is open with an error: what slots hold may be lost."""
        with self._lock:
            lost = [*filter(None, self._held), *self._waiting]
            self._waiting.clear()
            self._held = [None] * self.slots
            self._unread.clear()
            for request in lost:
                request._end("cancelled", error)
        self._device = Held.empty(self.model, self.slots, self.max_length)
        for request in lost:
            request._tell()

    def _read(
        self, slot: int, piece: Sequence[int], start: int, width: int, rows: Rows
    ) -> tuple:
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(piece)] = piece
        return read(
            self.model,
            self._params,
            self._device,
            jnp.int32(slot),
            tokens,
            jnp.int32(start),
            jnp.int32(len(piece)),
            rows,
        )

    def _decode(self, requests: Sequence[Request | None], steps: int) -> np.ndarray:
        self._device, chosen = decode(
            self.model,
            self._params,
            self._device,
            jnp.int32(steps),
            Rows.of(requests, self.model.config.vocab_size),
            chunk=self._decode_chunk,
        )
        return np.asarray(chosen)

    def _width(self, length: int) -> int:
        """Returns what a piece is padded to: one of a few widths, each a program."""
        width = _NARROWEST
        while width < length:
            width *= 2
        return min(width, max(self._prefill_chunk, length))

    def _has_open(self) -> bool:
        return bool(self._waiting) or any(self._held)

    def _let_go(self, request: Request) -> bool:
        if request in self._waiting:
            self._waiting.remove(request)
            return True
        for slot, held in enumerate(self._held):
            if held is request:
                self._held[slot] = None
                self._unread.pop(slot, None)
                return True
        return False

    # --- In the background ---------------------------------------------------------

    def start(self) -> Self:
        """Has a thread make the turns, until ``stop``.

        Returns:
          The engine.

        Raises:
          RuntimeError: One does already.
        """
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("the engine was started already")
            self._is_closed = False
            self._thread = threading.Thread(
                target=self._keep_on, name="haiku_mqa-engine", daemon=True
            )
            self._thread.start()
        return self

    def stop(self, *, finish: bool = True, timeout: float | None = None) -> None:
        """Takes no more requests, and returns when none is open.

        Args:
          finish: Whether open requests come to their end; else they are cancelled.
          timeout: Seconds after which those that are still open are cancelled.
        """
        with self._lock:
            self._is_closed = True
            self._work.notify_all()
            thread = self._thread
        if not finish:
            self._cancel_all()
        if thread is not None:
            thread.join(timeout)
            self._cancel_all()
            thread.join()
        else:
            self.run()
        with self._lock:
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(finish=kind is None)

    def help_along(self) -> bool:
        """Makes a turn where no thread in the background does.

        Returns:
          Whether it made one.
        """
        if self._thread is not None:
            return False
        self.step()
        return True

    def _keep_on(self) -> None:
        while True:
            with self._lock:
                while not self._has_open() and not self._is_closed:
                    self._work.wait()
                if not self._has_open():
                    return
            # Whoever waits for a request is told of the error; others go on.
            with contextlib.suppress(Exception):
                self.step()

    def _cancel_all(self) -> None:
        with self._lock:
            still_open = [*filter(None, self._held), *self._waiting]
        for request in still_open:
            self.cancel(request)
