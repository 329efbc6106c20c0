"""What the device knows of a batch: tables [G, B, N] int32, for each group the pages of each row, and lengths [B] int32

Page n of a row holds its tokens n * page ... ; -1 where there is none, or none any more. The host writes down what changed,
without waiting; compiled code reads, and advances the lengths itself, so that nothing of a step depends on the host's numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as List

import torch
from torch import Tensor

from .ops import OWNERS, Owner
from .sequences import Sequence

_numbers = itertools.count()

Cell = tuple[int, int, int, int]
"""Group, row, column, page."""


class Slate:
    """`stale`: the tables are not what the sequences say, and are to be written anew."""

    def __init__(self, owner: Owner, groups: int, batch: int, columns: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.tables = torch.full((groups, batch, columns), -1, dtype=torch.int32, device=device)
            self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
            self.handle = torch.tensor(next(_numbers))
        OWNERS[int(self.handle)] = owner
        self.stale = True

    @property
    def columns(self) -> int:
        return self.tables.shape[2]

    @property
    def batch(self) -> int:
        return self.tables.shape[1]

    def rewrite(self, tables: Tensor, rows: list[list[Sequence]], page: int) -> None:
        """All of `tables` (these, or what stands for them in a graph): of each group the sequence of each row."""
        cells = [
            (group, row, sequence.start // page + n, max(number, -1))
            for group, sequences in enumerate(rows) for row, sequence in enumerate(sequences)
            for n, number in enumerate(sequence.pages)
        ]
        tables.fill_(-1)
        self.enter(tables, cells)

    def enter(self, tables: Tensor, cells: list[Cell]) -> None:
        """tables[group, row, column] = page."""
        if cells:
            groups, rows, columns, pages = self._on_device(cells).T.unbind()
            tables[groups, rows, columns] = pages.int()

    def show(self, group: int, column: int, rows: list[list[int]]) -> None:
        """The pages of all rows of a group, equally many, from this column on."""
        pages = self._on_device(rows)
        self.tables[group, :, column : column + pages.shape[1]] = pages

    def _on_device(self, numbers: List[List[int]]) -> Tensor:
        device = self.tables.device
        return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
