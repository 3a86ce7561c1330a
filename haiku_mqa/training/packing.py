"""Short documents packed into rows, where none sees another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.training._random import DOCUMENTS, shuffled
from haiku_mqa.training.data import Batch, as_tokens, check_rows


class PackedDocuments:
    """Rows of whole documents, each a segment of its own; shuffled each epoch.

    A document of n tokens takes n - 1 places: its last token is only a label, so no
    label is another document's. One of more than T places is cut into segments of
    T, and loses no label by it. Documents are packed once, the longest first, each
    where least room is left (best-fit decreasing: Ding et al. 2024, *Fewer
    Truncations Improve Language Modeling*); the order of the rows is drawn anew in
    each epoch. Rows of all epochs stand in one endless line, of which step n takes
    those from B n, so each document is read exactly once an epoch.

    Example:
      >>> data = PackedDocuments([[1, 2, 3], [4, 5], [6, 7, 8, 9]], seq_len=4,
      ...     batch_size=2, seed=0)
      >>> data.rows_per_epoch, data.num_labels
      (2, 6)
      >>> batch = data.batch(1)
      >>> for name, array in batch._asdict().items():
      ...     print(f"{name:11}", *array.astype(int).tolist())
      tokens      [6, 7, 8, 4] [1, 2, 0, 0]
      labels      [7, 8, 9, 5] [2, 3, 0, 0]
      mask        [1, 1, 1, 1] [1, 1, 0, 0]
      segment_ids [1, 1, 1, 2] [1, 1, 0, 0]
      positions   [0, 1, 2, 0] [0, 1, 0, 0]
    """

    def __init__(
        self, documents: Iterable[Any], seq_len: int, batch_size: int, seed: int
    ):
        """Packs documents.

        Args:
          documents: Tokens of each, whole numbers ``[num_tokens]``, at least two.
          seq_len: T, in tokens.
          batch_size: B, rows over all processes.
          seed: From 0 to 2**64 - 1.
        """
        self.seq_len = whole_number("seq_len", seq_len)
        self.batch_size = whole_number("batch_size", batch_size)
        self.seed = whole_number("seed", seed, 0, 2**64 - 1)
        arrays = [as_tokens(f"documents[{i}]", d) for i, d in enumerate(documents)]
        _check_lengths(arrays, self.seq_len)
        self._tokens = np.concatenate(arrays).astype(np.int32)
        sizes = np.array([len(array) - 1 for array in arrays])
        begins = np.cumsum(sizes + 1) - (sizes + 1)
        self._pieces = _cut(begins, sizes, self.seq_len)
        self._rows = _pack(self._pieces[:, 1], self.seq_len)
        self._last_order = (-1, np.zeros(0, np.int64))

    @property
    def rows_per_epoch(self) -> int:
        """How many rows hold every document once."""
        return len(self._rows)

    @property
    def num_labels(self) -> int:
        """How many labels count in an epoch; other places are padding."""
        return int(self._pieces[:, 1].sum())

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the batch of a step: always the same one, on every machine.

        Args:
          step: From 0; its rows must be below 2**64.
          rows: Which of the B rows to make; all if ``None``.

        Returns:
          The batch, with segment ids and positions.

        Raises:
          ValueError: The step or the rows are out of range.
        """
        step = whole_number("step", step, 0, 2**64 // self.batch_size - 1)
        line = range(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = [self._row(place) for place in line[check_rows(rows, line)]]
        shape = (len(chosen), self.seq_len)
        tokens, labels, segment_ids, positions = np.zeros((4, *shape), np.int32)
        for row, pieces in enumerate(chosen):
            place = 0
            for segment, piece in enumerate(pieces, start=1):
                begin, size = self._pieces[piece]
                here = slice(place, place + size)
                tokens[row, here] = self._tokens[begin : begin + size]
                labels[row, here] = self._tokens[begin + 1 : begin + size + 1]
                segment_ids[row, here] = segment
                positions[row, here] = np.arange(size)
                place += size
        return Batch(tokens, labels, segment_ids > 0, segment_ids, positions)

    def _row(self, place: int) -> list[int]:
        epoch, place = divmod(place, self.rows_per_epoch)
        return self._rows[self._order_of(epoch)[place]]

    def _order_of(self, epoch: int) -> np.ndarray:
        known, order = self._last_order  # kept for speed; what it says never changes
        if known != epoch:
            order = shuffled(self.seed, DOCUMENTS, epoch, self.rows_per_epoch)
            self._last_order = (epoch, order)
        return order


def _check_lengths(documents: list[np.ndarray], seq_len: int) -> None:
    if not documents:
        raise ValueError("documents must be at least one, got none")
    for index, document in enumerate(documents):
        if len(document) < 2:
            raise ValueError(
                f"documents[{index}] must have at least 2 tokens, one to read and one "
                f"to foretell, got {len(document)}"
            )
    total = sum(map(len, documents))
    if total < seq_len + 1:
        raise ValueError(
            f"documents must have at least seq_len + 1 = {seq_len + 1} tokens "
            f"together, got {total}"
        )


def _cut(begins: np.ndarray, sizes: np.ndarray, seq_len: int) -> np.ndarray:
    """Returns where pieces begin and how many places they take, ``[pieces, 2]``."""
    counts = -(-sizes // seq_len)
    document = np.repeat(np.arange(len(sizes)), counts)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    left = sizes[document] - nth * seq_len
    return np.stack([begins[document] + nth * seq_len, np.minimum(left, seq_len)], 1)


def _pack(sizes: np.ndarray, seq_len: int) -> list[list[int]]:
    """Returns rows of pieces, none longer than T, by best-fit decreasing."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set where a row has room for r: finds the least that is enough
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > size:
            with_room[room - size].append(row)
            rooms |= 1 << (room - size)
    return rows
