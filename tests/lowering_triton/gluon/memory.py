"""Tensors, pointers, shared memory, TMA descriptors and products in flight, as torch's tensors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from .barriers import Barrier


class Layout:
    """Any layout, and any of its parts."""

    def __getattr__(self, name: str) -> Layout:
        return self

    def __getitem__(self, at: int) -> Layout:
        return self

    def __call__(self, *_: Any) -> Layout:
        return self


class Tensor(torch.Tensor):
    """With what Triton's tensors have and torch's have not; `x += y` makes a new one."""

    def __iadd__(self, other):
        return self + other

    def __format__(self, how):
        return format(self.item(), how)

    def split(self):
        return self.unbind(-1)

    def to(self, dtype, bitcast=False):
        x = self.as_subclass(torch.Tensor)
        return (x.view(dtype) if bitcast else x.to(dtype)).as_subclass(Tensor)

    type = property(lambda self: SimpleNamespace(layout=Layout()))


def tensor(x: Any, dtype: Any = None) -> Tensor:
    return torch.as_tensor(x, dtype=dtype).as_subclass(Tensor)


class Pointer:
    """Elements of a flat tensor, at an offset or a tensor of them."""

    def __init__(self, flat: torch.Tensor, at: Any = 0) -> None:
        self.flat, self.at = flat, at
        self.dtype = SimpleNamespace(element_ty=flat.dtype)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.flat, self.at + offset)

    def to(self, dtype: torch.dtype) -> Tensor:
        """An address."""
        return tensor(self.flat.data_ptr() + self.at * self.flat.itemsize, dtype)

    def __getitem__(self, index: Any) -> Pointer:
        return Pointer(self.flat, self.at[index])


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

    def slice(self, start: int, length: int, dim: int) -> Shared:
        return Shared(self.data.narrow(dim, start, length))

    def _reinterpret(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Shared:
        return Shared(self.data.view(dtype).view(shape))

    def load(self, layout: Any) -> Tensor:
        return tensor(self.data.clone())

    def store(self, x: torch.Tensor) -> None:
        assert list(x.shape) == self.shape
        self.data.copy_(x.as_subclass(torch.Tensor))


class Descriptor:
    """A TMA descriptor of a tensor in tiles of these sizes of its last dims; outside it reads as 0 and is not written."""

    layout = Layout()

    def __init__(self, x: torch.Tensor, *tile: int) -> None:
        self.x, self.dtype, shape = x, x.dtype, [1] * (x.dim() - len(tile)) + list(tile)
        self.shape = [tensor(size, torch.int32) for size in x.shape]
        self.block_type = SimpleNamespace(shape=shape, nbytes=math.prod(tile) * x.itemsize)

    def inside(self, coord: list[Any]) -> tuple[torch.Tensor, tuple[slice, ...]]:
        """The part of a tile that lies in the tensor, and where it lies in the tile."""
        starts = [int(start) for start in coord]
        assert min(starts) >= 0
        sizes = zip(starts, self.block_type.shape, self.x.shape, strict=True)
        found = self.x[tuple(slice(start, min(start + size, whole)) for start, size, whole in sizes)]
        return found, tuple(slice(0, size) for size in found.shape)


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
