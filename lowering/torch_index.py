"""table[f(b,h,i,j), ...] over a box of indices, as a view where the index allows, else as a gather

An `Axis` is one side of the box [B, H, T, S]: it becomes a tensor only where arithmetic needs one. A box side of length
one is a Python int from the start, so the mask of one decode step is arithmetic on ints.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

RANK = 4


class Axis:
    """start, start + step, ... < stop along dimension `dim` of [B, H, T, S]; more than one value."""

    __slots__ = ("device", "dim", "start", "step", "stop")

    def __init__(self, dim: int, start: int, stop: int, step: int = 1, device: torch.device | str = "cpu") -> None:
        self.dim, self.start, self.stop, self.step, self.device = dim, start, stop, step, device

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))

    def values(self) -> Tensor:
        """int64, broadcasting along the three other dimensions."""
        shape = [1] * RANK
        shape[self.dim] = -1
        return torch.arange(self.start, self.stop, self.step, device=self.device).view(shape)


Index: TypeAlias = "int | Axis | Tensor"
Value: TypeAlias = "bool | int | float | Tensor"


def axis(dim: int, start: int, stop: int, step: int = 1, device: torch.device | str = "cpu") -> int | Axis:
    """The indices start, start + step, ... < stop of dimension `dim`: a plain int if there is one."""
    return start if start + step >= stop else Axis(dim, start, stop, step, device)


def box(
    batch: int, heads: int, rows: tuple[int, int], columns: tuple[int, int], device: torch.device | str = "cpu"
) -> tuple[int | Axis, int | Axis, int | Axis, int | Axis]:
    """b, h, i, j of the box [0, batch) x [0, heads) x rows x columns."""
    return axis(0, 0, batch, 1, device), axis(1, 0, heads, 1, device), axis(2, *rows, 1, device), axis(3, *columns, 1, device)


def values(index: Index) -> int | Tensor:
    """The index as something to count with."""
    return index.values() if isinstance(index, Axis) else index


def load(table: Tensor, index: Sequence[Index]) -> Value:
    """table[index], each index clamped into the table: what is loaded outside is never used."""
    if all(isinstance(at, int) for at in index):
        return table[tuple(_inside(at, size) for at, size in zip(index, table.shape, strict=True))].item()  # type: ignore[arg-type]
    view = _view(table, index)
    return _gather(table, index) if view is None else view


def _inside(at: int, size: int) -> int:
    return min(max(at, 0), size - 1)


def _view(table: Tensor, index: Sequence[Index]) -> Tensor | None:
    """The loaded box without a copy; None if an index is computed, runs past the table, or stands twice."""
    shape, stride, offset = [1] * RANK, [0] * RANK, table.storage_offset()
    for at, size, pitch in zip(index, table.shape, table.stride(), strict=True):
        if isinstance(at, int):
            offset += _inside(at, size) * pitch
        elif isinstance(at, Axis) and at.stop <= size and shape[at.dim] == 1:
            shape[at.dim], stride[at.dim] = len(at), at.step * pitch
            offset += at.start * pitch
        else:
            return None
    return table.as_strided(shape, stride, offset)


def _gather(table: Tensor, index: Sequence[Index]) -> Tensor:
    inside = [
        _inside(at, size) if isinstance(at, int) else values(at).clamp(0, size - 1)  # type: ignore[union-attr]
        for at, size in itertools.zip_longest(index, table.shape)
    ]
    return table[tuple(inside)]
