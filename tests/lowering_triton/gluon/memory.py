"""Tensors, pointers, shared memory, TMA descriptors and products in flight, as torch's tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .barriers import Barrier


class Tensor(torch.Tensor):
    """With what Triton's tensors have and torch's have not."""

    def to(self, dtype, bitcast=False):
        x = self.as_subclass(torch.Tensor)
        return (x.view(dtype) if bitcast else x.to(dtype)).as_subclass(Tensor)

    type = property(lambda self: SimpleNamespace(layout=None))


def tensor(x: Any, dtype: Any = None) -> Tensor:
    return torch.as_tensor(x, dtype=dtype).as_subclass(Tensor)


class Pointer:
    """Elements of a flat tensor, at an offset or a tensor of them."""

    def __init__(self, flat: torch.Tensor, at: Any = 0) -> None:
        self.flat, self.at = flat, at
        self.dtype = SimpleNamespace(element_ty=flat.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.flat, self.at + offset)


class Shared:
    """A piece of shared memory; `barriers` instead of numbers where it holds mbarriers."""

    def __init__(self, data: torch.Tensor | list[Barrier]) -> None:
        self.data = data
        self.shape = list(data.shape) if isinstance(data, torch.Tensor) else [len(data), 1]
        self.dtype = getattr(data, "dtype", None)

    def index(self, at: Any) -> Any:
        assert 0 <= int(at) < self.shape[0]
        found = self.data[int(at)]
        return Shared(found) if isinstance(found, torch.Tensor) else found

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.data.view(shape))

    def permute(self, order: list[int]) -> Shared:
        return Shared(self.data.permute(order))

    def load(self, layout: Any) -> Tensor:
        return tensor(self.data.clone())

    def store(self, x: torch.Tensor) -> None:
        assert list(x.shape) == self.shape
        self.data.copy_(x.as_subclass(torch.Tensor))


class Descriptor:
    """A TMA descriptor of a tensor [B, H, S, D] in tiles of rows x columns."""

    def __init__(self, x: torch.Tensor, rows: int, columns: int) -> None:
        self.x, self.dtype, self.layout = x, x.dtype, None
        self.block_type = SimpleNamespace(shape=[1, 1, rows, columns], nbytes=rows * columns * x.itemsize)

    def inside(self, coord: list[Any]) -> tuple[torch.Tensor, tuple[int, int]]:
        b, h, row, column = map(int, coord)
        rows, columns = self.block_type.shape[2:]
        found = self.x[b, h, max(row, 0) : row + rows, column : column + columns]
        return found, tuple(found.shape)


class Product:
    """A product in flight."""

    def __init__(self, a: Any, b: Shared, acc: Any, late: bool) -> None:
        self.parts, self.value = (a, b, acc), None
        if not late:
            self.get()

    def get(self) -> Tensor:
        if self.value is None:
            a, b, acc = self.parts
            left = a.data if isinstance(a, Shared) else a.as_subclass(torch.Tensor)
            acc = acc.get() if isinstance(acc, Product) else acc
            self.value = tensor(left.float() @ b.data.float() + (0 if acc is None else acc.as_subclass(torch.Tensor)))
        return self.value
