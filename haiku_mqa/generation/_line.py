"""Who waits, who has which slot, and which tokens each slot's cache knows.

All of it is under one lock, and nothing here takes long: no device works, and no one
outside is called, while it is held.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from collections.abc import Sequence

from haiku_mqa.errors import EngineFull, EngineStopped
from haiku_mqa.generation.request import NewToken, Request


@dataclasses.dataclass(eq=False)
class Slot:
    """A row of the cache, for one request at a time.

    Attributes:
      place: Which row.
      request: Whose it is; ``None`` where it is free.
      read: How much of the request's prompt it holds; ``None`` before the first piece
        was read, when it still holds what was left.
      left: The tokens that whoever had it before left in it.
      freed_at: Its place in the order in which slots became free.
    """

    place: int
    request: Request | None = None
    read: int | None = None
    left: tuple[int, ...] = ()
    freed_at: int = 0

    @property
    def known(self) -> tuple[int, ...]:
        """The tokens that the cache holds, as far as one can be sure of it."""
        if self.request is None or self.read is None:
            return self.left
        if self.read < len(self.request.prompt):
            return self.request.prompt[: self.read]
        # The token chosen last is read with the one after it.
        return (*self.request.prompt, *self.request.tokens[:-1])


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens of a prompt that are read next.

    Attributes:
      slot: Whose request's.
      request: The request.
      source: The row that holds what comes before them.
      start: How many of the prompt come before them.
      count: How many they are.
    """

    slot: Slot
    request: Request
    source: int
    start: int
    count: int

    @property
    def end(self) -> int:
        """How many tokens of the prompt are read after it."""
        return self.start + self.count

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with it, so that a token is chosen."""
        return self.end == len(self.request.prompt)


class Line:
    """Requests on their way through slots, first come first served.

    Attributes:
      max_waiting: How many may wait beyond free slots.
      is_closed: Whether no more are taken.
      work: Notified, with the line's lock held, when there is something to do.
    """

    def __init__(self, slots: int, max_waiting: int, *, keeps_prefixes: bool):
        """Begins with free slots.

        Args:
          slots: How many.
          max_waiting: How many requests may wait.
          keeps_prefixes: Whether what a slot holds may serve another request.
        """
        self.max_waiting = max_waiting
        self.is_closed = False
        self.work = threading.Condition(threading.Lock())
        self._waiting: collections.deque[Request] = collections.deque()
        self._slots = [Slot(place) for place in range(slots)]
        self._unread: collections.deque[Slot] = collections.deque()
        self._keeps_prefixes = keeps_prefixes
        self._freed = itertools.count(1)

    # --- Requests ------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Lets a request wait for a slot.

        Raises:
          EngineFull: As many wait already as may.
          EngineStopped: No more are taken.
        """
        with self.work:
            if self.is_closed:
                raise EngineStopped("the engine is stopped, and takes no more requests")
            free = len(self._slots) - self.num_running
            if len(self._waiting) >= self.max_waiting + free:
                raise EngineFull(
                    f"no more than max_waiting = {self.max_waiting} requests may wait "
                    f"beyond free slots; waiting: {len(self._waiting)}"
                )
            self._waiting.append(request)
            self.work.notify_all()

    def leave(self, request: Request) -> bool:
        """Ends a request that is open as it is, and returns whether it was."""
        with self.work:
            if request.is_done:
                return False
            mine = [slot for slot in self._slots if slot.request is request]
            if mine:
                self._free(mine[0])
            elif request in self._waiting:
                self._waiting.remove(request)
            else:
                return False  # another engine's
            request._end("cancelled")
        request._tell()
        return True

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """How many slots are taken."""
        return sum(slot.request is not None for slot in self._slots)

    @property
    def has_open(self) -> bool:
        """Whether any request is open; asked with the lock held."""
        return bool(self._waiting) or self.num_running > 0

    @property
    def is_busy(self) -> bool:
        """Whether any request is open."""
        with self.work:
            return self.has_open

    @property
    def knows_any(self) -> bool:
        """Whether any slot is taken, or holds what may be of use."""
        with self.work:
            return any(slot.request or slot.left for slot in self._slots)

    def all_open(self) -> list[Request]:
        """Returns the requests that are open."""
        with self.work:
            return self._all_open()

    # --- What a turn does ----------------------------------------------------------

    def admit(self) -> None:
        """Gives free slots to those who wait."""
        with self.work:
            free = [slot for slot in self._slots if slot.request is None]
            while free and self._waiting:
                request = self._waiting.popleft()
                slot = _slot_for(request.prompt, free)
                free.remove(slot)
                slot.request, slot.read = request, None
                self._unread.append(slot)

    def next_piece(self, most: int, room: int) -> Piece | None:
        """Returns what is to be read next, and counts it as read.

        Args:
          most: How many tokens a piece has, but for the last of a prompt.
          room: How many tokens there is time for.

        Returns:
          The piece; ``None`` where nobody has any left to read, or no time for it.
        """
        with self.work:
            if not self._unread:
                return None
            slot = self._unread[0]
            if slot.request is None:
                raise RuntimeError(f"slot {slot.place} has a prompt and no request")
            prompt, source, start = slot.request.prompt, slot, slot.read
            if start is None:
                source, shared = slot, 0
                if self._keeps_prefixes:
                    source, shared = _longest_shared(prompt, slot, self._slots)
                # The last token is read in any case, for what follows it.
                start = min(shared, len(prompt) - 1)
            count = min(most, len(prompt) - start)
            if count > room:
                return None
            if slot.read is None:
                slot.request.num_reused = start
            slot.read = start + count
            if slot.read == len(prompt):
                self._unread.popleft()
            return Piece(slot, slot.request, source.place, start, count)

    def decoding(self) -> list[tuple[Slot, Request]]:
        """Returns who is read and has more tokens to choose, and in which slot."""
        with self.work:
            return [
                (slot, slot.request)
                for slot in self._slots
                if slot.request is not None and slot.read == len(slot.request.prompt)
            ]

    @property
    def is_crowded(self) -> bool:
        """Whether prompts are still to be read."""
        return bool(self._unread)

    def deliver(self, new: Sequence[tuple[Slot, Request, Sequence[NewToken]]]) -> None:
        """Gives requests the tokens that were chosen for them in a slot."""
        told = []
        with self.work:
            for slot, request, tokens in new:
                # Cancelled while the device was at work: its tokens are nobody's.
                if slot.request is not request:
                    continue
                if request._take(tokens):
                    self._free(slot)
                told.append(request)
        for request in told:
            request._tell()

    def swap(self, one: int, other: int) -> None:
        """Takes note that two rows changed places."""
        with self.work:
            slots = self._slots
            slots[one], slots[other] = slots[other], slots[one]
            slots[one].place, slots[other].place = one, other

    def abandon(self, error: BaseException) -> None:
        """Ends all that is open with an error: what slots hold may be lost."""
        with self.work:
            lost = self._all_open()
            self._waiting.clear()
            self._unread.clear()
            for slot in self._slots:
                slot.request, slot.read, slot.left = None, None, ()
            for request in lost:
                request._end("cancelled", error)
        for request in lost:
            request._tell()

    def _all_open(self) -> list[Request]:
        held = [slot.request for slot in self._slots if slot.request is not None]
        return [*held, *self._waiting]

    def _free(self, slot: Slot) -> None:
        slot.left = slot.known if self._keeps_prefixes else ()
        slot.request, slot.read = None, None
        slot.freed_at = next(self._freed)
        if slot in self._unread:
            self._unread.remove(slot)


def _slot_for(prompt: tuple[int, ...], free: Sequence[Slot]) -> Slot:
    """Returns the slot in which the least is lost, and the most is of use."""
    whole = [slot for slot in free if prompt[: len(slot.left)] == slot.left]
    if whole:
        return max(whole, key=lambda slot: len(slot.left))
    return min(free, key=lambda slot: slot.freed_at)


def _longest_shared(
    prompt: tuple[int, ...], own: Slot, slots: Sequence[Slot]
) -> tuple[Slot, int]:
    """Returns the slot that knows the most of a prompt, and how many tokens."""
    best, most = own, _shared(prompt, own.known)
    for slot in slots:
        known = slot.known
        # Told apart by one look, where most slots hold another text.
        if prompt[:most] == known[:most] and _shared(prompt, known) > most:
            best, most = slot, _shared(prompt, known)
    return best, most


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    apart = (place for place, (a, b) in pairs if a != b)
    return next(apart, min(len(one), len(other)))
