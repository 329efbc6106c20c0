"""Layers that see equally far and share block tables: one sequence of the pool for each row of the batch."""

from __future__ import annotations

from ..errors import PoolError
from .pool import KVPool
from .sequences import Sequence
from .slate import Cell


class Group:
    """The `layers`, by number, of one `window` (tokens a query sees, itself included; None: all), and a sequence for each row.

    `number` is its own place in the tables of the batch. What changes its pages says which cells of the tables change.
    `offloaded`: its pages are on the host but for the turn of its layers.
    """

    def __init__(
        self, pool: KVPool, number: int, window: int | None, layers: list[int], sequences: list[Sequence]
    ) -> None:
        self.pool = pool
        self.number = number
        self.window = window
        self.layers = layers
        self.sequences = sequences
        self.offloaded = False

    def marks(self) -> list[tuple[int, int]]:
        """Of each row: pages it has, and the last of them."""
        return [(len(sequence.pages), sequence.pages[-1] if sequence.pages else -1) for sequence in self.sequences]

    def changed(self, marks: list[tuple[int, int]]) -> list[Cell]:
        """The pages that rows have gained since `marks`, and tails that were copied."""
        cells = []
        for row, (sequence, (count, tail)) in enumerate(zip(self.sequences, marks, strict=True)):
            first = count - 1 if count and sequence.pages[count - 1] != tail else count
            cells += self._cells(row, sequence, first, sequence.pages[first:])
        return cells

    def forget(self) -> list[Cell]:
        """Pages that no later query sees go."""
        cells = []
        for row, sequence in enumerate(self.sequences if self.window is not None else ()):
            before = sequence.start // self.pool.geometry.page
            self.pool.forget(sequence, self.first_seen(sequence.length))
            gone = sequence.start // self.pool.geometry.page - before
            cells += self._cells(row, sequence, -gone, [-1] * gone)
        return cells

    def rows(self) -> tuple[int, list[list[int]]]:
        """The first column that has a page, and all pages of each row from there, of which none is on the host."""
        return self.sequences[0].start // self.pool.geometry.page, [sequence.pages for sequence in self.sequences]

    def _cells(self, row: int, sequence: Sequence, first: int, pages: list[int]) -> list[Cell]:
        """Pages from the `first` of a sequence on."""
        column = sequence.start // self.pool.geometry.page + first
        return [(self.number, row, column + n, page) for n, page in enumerate(pages)]

    def first_seen(self, length: int) -> int:
        """The first token that a query at position `length` sees."""
        return 0 if self.window is None else max(length - self.window + 1, 0)

    def check_crop(self, tokens: int) -> None:
        """Raises PoolError where the last `tokens` tokens cannot go."""
        sequence = self.sequences[0]
        if tokens > sequence.length:
            raise PoolError(f"crop of {tokens} tokens; the cache holds {sequence.length}")
        if tokens and sequence.start > self.first_seen(sequence.length - tokens):
            raise PoolError(f"the window of {self.window} tokens has moved on", "call activate_past_recording() first")

    def crop(self, length: int) -> None:
        for sequence in self.sequences:
            self.pool.truncate(sequence, length)
        self.forget()

    def fork(self) -> list[Sequence]:
        return [self.pool.fork(sequence) for sequence in self.sequences]

    def select(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] is: the row itself for the first that wants it, forks for the others."""
        chosen = [self.sequences[row] for row in rows]
        taken: set[Sequence] = set()
        new = []
        for sequence in chosen:
            new.append(self.pool.fork(sequence) if sequence in taken else sequence)
            taken.add(sequence)
        for sequence in self.sequences:
            if sequence not in taken:
                self.pool.release(sequence)
        self.sequences[:] = new
