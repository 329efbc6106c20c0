"""Tensors as TMA descriptors, for the Gluon kernels of Hopper. Triton is imported at the first call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

REGISTERS = 168
"""Per thread at the start of a kernel of 12 warps: together they have 64 K."""


def describable(*tensors: Tensor) -> bool:
    """Whether TMA can address them: a unit stride in the last dim, 16-byte multiples in the others, an aligned start."""
    return all(_describable(x) for x in tensors)


def _describable(x: Tensor) -> bool:
    strides = [stride * x.itemsize for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    aligned = all(0 < stride < 1 << 40 and stride % 16 == 0 for stride in strides)
    return aligned and unit_stride(x) and x.data_ptr() % 16 == 0


def unit_stride(x: Tensor) -> bool:
    """In the last dim, or of one element."""
    return x.stride(-1) == 1 or x.shape[-1] == 1


@lru_cache(maxsize=256)
def layout(tile: tuple[int, ...], dtype: torch.dtype) -> Any:
    """How a tile lies in shared memory."""
    from triton.experimental.gluon import language as gl

    kinds = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16, torch.float32: gl.float32, torch.int8: gl.int8,
             torch.uint8: gl.uint8}
    return gl.NVMMASharedLayout.get_default_for(list(tile), kinds[dtype])


def tile_type(kind: str, tile: list[int], dtype: torch.dtype) -> str:
    """The type of a kernel's argument that describes tiles of `kind` (fp16, bf16, fp32, i8, u8)."""
    return f"tensordesc<{kind}{tile},{layout(tuple(tile), dtype)!r}>"


def describe(x: Tensor, *tile: int) -> Any:
    """x [..., S, D] in tiles of these sizes of its last dims; what lies outside reads as 0, and is not written.

    The stride of a size of 1 is never used.
    """
    unused = -(-x.numel() // 8) * 8
    strides = tuple(stride if size > 1 else unused for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True))
    return _described(x.data_ptr(), tuple(x.shape), (*strides, 1), x.dtype, tile)


@dataclass(frozen=True)
class _Memory:
    """What a descriptor asks of its tensor, which it does not keep alive."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


@lru_cache(maxsize=4096)
def _described(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, tile: tuple[int, ...]
) -> Any:
    """Triton checks each descriptor for some microseconds: those of memory that comes again are remembered."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    box = (1,) * (len(shape) - len(tile)) + tile
    return TensorDescriptor(_Memory(address, dtype), list(shape), list(strides), list(box), layout(box, dtype))
