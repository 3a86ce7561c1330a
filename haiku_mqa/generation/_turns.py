"""An engine's turns: a few pieces are read, and a few tokens chosen in every slot."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.generation._line import Line, Slot
from haiku_mqa.generation._slots import (
    NONE_CHOSEN,
    Chosen,
    Held,
    begin,
    decode,
    put_row,
    read,
    take_row,
)
from haiku_mqa.generation._standing import Rows
from haiku_mqa.generation.request import NewToken, Request
from haiku_mqa.model import Model, Params

_NARROWEST = 16  # of the widths that a piece of a prompt is padded to, in tokens
_SHORTEST = 512  # of the lengths of room that a program works on, in tokens
_COARSE = 4  # how far one of the sizes that programs are made for is from the next
_CROWDED = 4  # while prompts wait to be read, a decode chunk is this many times shorter


class Turns:
    """The device's part of an engine: what slots hold there, and who works on it.

    Programs are compiled for few shapes: as many rows as decode, and as much of their
    room as the longest of them fills, each up to the next of a few sizes.

    Attributes:
      lock: Held by whoever makes a turn.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        line: Line,
        *,
        slots: int,
        max_length: int,
        prefill_chunk: int,
        decode_chunk: int,
        cache_dtype: jax.typing.DTypeLike | None,
        ring_cache: bool,
    ):
        """Makes room for a batch; arguments as ``Engine``'s, checked there."""
        self.lock = threading.Lock()
        self._model = model
        # NumPy weights would be copied to the device at every call.
        self._params = jax.device_put(params)
        self._line = line
        self._slots = slots
        self._max_length = max_length
        self._prefill_chunk = prefill_chunk
        self._decode_chunk = decode_chunk
        self._cache_dtype = cache_dtype
        self._ring_cache = ring_cache
        self._held = self._empty()
        # A ring is as long as its window whatever a row has read.
        shortest = max_length if self._held.cache.windows else _SHORTEST
        self._widths = _widths(slots)
        self._lengths = _lengths(shortest, max_length)

    def make(self) -> None:
        """Makes one turn.

        Raises:
          Exception: What the device raised. All that was open has ended with it.
        """
        with self.lock:
            try:
                self._line.admit()
                self._read_some()
                self._choose_some()
            except BaseException as error:
                self._line.abandon(error)
                self._held = self._empty()
                raise

    def warm_up(self) -> None:
        """Compiles all that turns need; what slots hold stays as it is."""
        with self.lock:
            kept = self._held if self._line.knows_any else None
            if kept is not None:
                self._held = self._empty()
            # A slot has room for a new token too.
            lengths = range(1, min(self._prefill_chunk, self._max_length - 1) + 1)
            pieces = sorted({self._padded(length) for length in lengths})
            prompt = self._padded_prompt(None)
            for length, width in itertools.product(self._lengths, pieces):
                logits = self._read(prompt, 0, 0, 0, 0, width=width, length=length)
                self._begin(logits, 0, prompt, None)
            for length, width in itertools.product(self._lengths, self._widths):
                self._decode([None] * width, 0, 1, length, until_end=False)
            if len(self._widths) > 1:
                self._held = put_row(self._held, jnp.int32(0), self._row(0))
            if kept is not None:
                self._held = kept

    # --- Reading -------------------------------------------------------------------

    def _read_some(self) -> None:
        room = self._prefill_chunk
        begun = []
        while piece := self._line.next_piece(self._prefill_chunk, room):
            width = self._padded(piece.count)
            prompt = self._padded_prompt(piece.request)
            logits = self._read(
                prompt,
                piece.source,
                piece.slot.place,
                piece.start,
                piece.count,
                width=width,
                length=_least(self._lengths, piece.end),
            )
            if piece.is_last:
                chosen = self._begin(logits, piece.slot.place, prompt, piece.request)
                begun.append((piece, chosen))
            room -= width
        # Only now is the device waited for.
        self._line.deliver(
            [(p.slot, p.request, _on_host(chosen, p.request, 0)) for p, chosen in begun]
        )

    def _read(
        self,
        prompt: np.ndarray,
        source: int,
        row: int,
        start: int,
        count: int,
        *,
        width: int,
        length: int,
    ) -> jax.Array:
        self._held, logits = read(
            self._model,
            self._params,
            self._held,
            jnp.int32(source),
            jnp.int32(row),
            prompt,
            jnp.int32(start),
            jnp.int32(count),
            width=width,
            length=length,
        )
        return logits

    def _begin(
        self, logits: jax.Array, row: int, prompt: np.ndarray, request: Request | None
    ) -> Chosen:
        self._held, chosen = begin(
            self._held,
            logits,
            jnp.int32(row),
            prompt,
            jnp.int32(len(request.prompt) if request else 0),
            Rows.of([request], self._model.config.vocab_size),
        )
        return chosen

    def _padded_prompt(self, request: Request | None) -> np.ndarray:
        """Returns a prompt at one length for all, with room for a piece's padding."""
        padded = np.zeros(self._max_length + self._prefill_chunk, np.int32)
        if request is not None:
            padded[: len(request.prompt)] = request.prompt
        return padded

    # --- Choosing ------------------------------------------------------------------

    def _choose_some(self) -> None:
        going = self._line.decoding()
        if not going:
            return
        steps = self._decode_chunk
        if self._line.is_crowded:
            steps = max(1, steps // _CROWDED)
        first, width = self._close_ranks([slot for slot, _ in going])
        requests: list[Request | None] = [None] * width
        for slot, request in going:
            requests[slot.place - first] = request
        longest = max(len(r.prompt) + len(r.tokens) for _, r in going)
        chosen = self._decode(
            requests,
            first,
            steps,
            _least(self._lengths, min(longest - 1 + steps, self._max_length)),
            # Whoever waits takes a slot as soon as there is one.
            until_end=self._line.num_waiting > 0,
        )
        self._line.deliver(
            [
                (slot, request, _on_host(chosen, request, slot.place - first))
                for slot, request in going
            ]
        )

    def _decode(
        self,
        requests: Sequence[Request | None],
        first: int,
        steps: int,
        length: int,
        *,
        until_end: bool,
    ) -> Chosen:
        self._held, chosen = decode(
            self._model,
            self._params,
            self._held,
            jnp.int32(first),
            jnp.int32(steps),
            jnp.bool_(until_end),
            Rows.of(requests, self._model.config.vocab_size),
            chunk=self._decode_chunk,
            length=length,
        )
        return chosen

    def _close_ranks(self, slots: Sequence[Slot]) -> tuple[int, int]:
        """Has slots lie within as few rows as there is a program for.

        Returns:
          The first of those rows, and how many they are.
        """
        width = _least(self._widths, len(slots))
        places = [slot.place for slot in slots]

        def inside(first: int) -> int:
            return sum(first <= place < first + width for place in places)

        first = max(range(self._slots - width + 1), key=inside)
        rows = range(first, first + width)
        gaps = [row for row in rows if row not in places]
        for place in [place for place in places if place not in rows]:
            gap = gaps.pop()
            mine, other = self._row(place), self._row(gap)
            self._held = put_row(self._held, jnp.int32(gap), mine)
            self._held = put_row(self._held, jnp.int32(place), other)
            self._line.swap(place, gap)
        return first, width

    def _row(self, place: int) -> Held:
        return take_row(self._held, jnp.int32(place))

    def _empty(self) -> Held:
        cache = self._model.init_cache(
            self._slots, self._max_length, self._cache_dtype, ring=self._ring_cache
        )
        return Held.empty(self._model, cache)

    def _padded(self, length: int) -> int:
        """Returns what a piece is padded to: one of a few widths, each a program."""
        width = _NARROWEST
        while width < length:
            width *= 2
        return min(width, max(self._prefill_chunk, length))


def _widths(slots: int) -> list[int]:
    """Returns for how many rows there are programs: one, all, and some between."""
    between = itertools.takewhile(
        lambda width: width >= _COARSE,
        (slots // _COARSE**power for power in itertools.count(1)),
    )
    return sorted({1, *between, slots})


def _lengths(least: int, most: int) -> list[int]:
    """Returns for how many tokens of room there are programs, the last for all."""
    lengths = [least]
    while lengths[-1] * _COARSE <= most:
        lengths.append(lengths[-1] * _COARSE)
    # One that is nearly all would hardly be faster.
    return [*(length for length in lengths if 2 * length <= most), most]


def _least(sizes: Sequence[int], needed: int) -> int:
    return next(size for size in sizes if size >= needed)


def _on_host(chosen: Chosen, request: Request, row: int) -> list[NewToken]:
    """Returns the tokens of one request, with as much beside each as it asked for."""

    def mine(leaf: jax.Array) -> np.ndarray:
        return np.atleast_1d(np.asarray(leaf)[row])

    tokens = [token for token in mine(chosen.tokens).tolist() if token != NONE_CHOSEN]
    if not request.with_logprobs:
        return [NewToken(token) for token in tokens]
    most = request.num_alternatives
    ids = np.atleast_2d(mine(chosen.top_tokens))[:, :most].tolist()
    logprobs = np.atleast_2d(mine(chosen.top_logprobs))[:, :most].tolist()
    return [
        NewToken(token, logprob, tuple(zip(theirs, likely, strict=True)))
        for token, logprob, theirs, likely in zip(
            tokens, mine(chosen.logprobs).tolist(), ids, logprobs, strict=False
        )
    ]
