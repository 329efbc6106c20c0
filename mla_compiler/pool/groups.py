"""Layers that see equally far and share block tables: one sequence of the pool for each row of the batch."""

from __future__ import annotations

import torch

from ..errors import PoolError
from .pool import KVPool
from .sequences import Sequence, Tables


class Group:
    """`layers` layers of one `window` (tokens a query sees, itself included; None: all), and a sequence for each row."""

    def __init__(self, pool: KVPool, window: int | None, layers: int, sequences: list[Sequence]) -> None:
        self.pool = pool
        self.window = window
        self.layers = layers
        self.sequences = sequences
        self.table: Tables | None = None
        self.slots = torch.empty(0)
        self.unwritten = 0

    def step(self, tokens: int) -> None:
        """The pool has made room for `tokens` more in each row; every layer is to write them."""
        self.table = self.pool.tables(self.sequences)
        self.slots = self.table.slots(tokens)
        self.unwritten = self.layers

    def update(self, within: int, k: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The new k [B, H, T, D] and v of layer `within` go in; out come those that the new queries may see, [B, H, S, D].

        When the last layer has written, what lies behind the window goes, unless `keep`.
        """
        if self.table is None or not self.unwritten:
            raise PoolError("a layer writes once after each step of the cache")
        self.pool.write(within, self.slots, k, v)
        length, page = self.sequences[0].length, self.table.page
        origin = self.sequences[0].start // page * page
        read = self.pool.read(within, self.table, self.first_seen(length - k.shape[2]) - origin, length - origin)
        self.unwritten -= 1
        if not self.unwritten:
            self.table = None
            if not keep:
                self.forget()
        return read

    def first_seen(self, length: int) -> int:
        """The first token that a query at position `length` sees."""
        return 0 if self.window is None else max(length - self.window + 1, 0)

    def forget(self) -> None:
        for sequence in self.sequences if self.window is not None else ():
            self.pool.forget(sequence, self.first_seen(sequence.length))

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
