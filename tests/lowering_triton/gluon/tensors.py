"""What `gl` does to tensors; layouts are ignored."""

from __future__ import annotations

from typing import Any

import torch

from .memory import Tensor, tensor


class Tensors:
    """The part of `gl` that needs no launch."""

    float16, bfloat16, float32, float8e4nv = torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn
    int1, int8, int16, int32, int64 = torch.bool, torch.int8, torch.int16, torch.int32, torch.int64

    @staticmethod
    def constexpr(x: Any = None) -> Any:
        return x

    static_range = range

    @staticmethod
    def multiple_of(x: Tensor, by: int) -> Tensor:
        assert int(x) % by == 0
        return x

    @staticmethod
    def cdiv(x: Any, y: Any) -> Any:
        return -(-x // y)

    @staticmethod
    def arange(start: int, end: int, layout: Any = None) -> Tensor:
        return tensor(torch.arange(start, end, dtype=torch.int32))

    @staticmethod
    def full(shape: list[int], value: Any, dtype: torch.dtype, layout: Any = None) -> Tensor:
        return tensor(torch.full(shape, value, dtype=dtype))

    @staticmethod
    def zeros(shape: list[int], dtype: torch.dtype, layout: Any = None) -> Tensor:
        return tensor(torch.zeros(shape, dtype=dtype))

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Tensor:
        return tensor(torch.where(torch.as_tensor(condition), x, y))

    @staticmethod
    def maximum(x: Any, y: Any, propagate_nan: Any = None) -> Tensor:
        return tensor(torch.maximum(torch.as_tensor(x), torch.as_tensor(y)))

    @staticmethod
    def minimum(x: Any, y: Any, propagate_nan: Any = None) -> Tensor:
        return tensor(torch.minimum(torch.as_tensor(x), torch.as_tensor(y)))

    @staticmethod
    def max(x: Tensor, axis: int) -> Tensor:
        return x.amax(axis)

    @staticmethod
    def min(x: Tensor, axis: int) -> Tensor:
        return x.amin(axis)

    @staticmethod
    def sum(x: Tensor, axis: int) -> Tensor:
        return tensor(x.sum(axis, dtype=torch.int32 if x.dtype == torch.bool else x.dtype))

    @staticmethod
    def associative_scan(x: Tensor, axis: int, combine: Any) -> Tensor:
        return tensor(x.cumsum(axis, dtype=x.dtype))

    @staticmethod
    def convert_layout(x: Tensor, layout: Any) -> Tensor:
        return x

    @staticmethod
    def reshape(x: Tensor, shape: list[int]) -> Tensor:
        return x.reshape(shape)

    @staticmethod
    def permute(x: Tensor, order: list[int]) -> Tensor:
        return x.permute(order)

    @staticmethod
    def expand_dims(x: Tensor, axis: int) -> Tensor:
        return x.unsqueeze(axis)

    @staticmethod
    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 0], x[..., 1]

    @staticmethod
    def join(x: Tensor, y: Tensor) -> Tensor:
        return tensor(torch.stack([x, y], -1))

    @staticmethod
    def cast(x: Any, dtype: torch.dtype) -> Tensor:
        return tensor(x).to(dtype)

    exp, exp2, log, log2, abs, floor, ceil, sqrt_rn = (
        staticmethod(lambda x, f=f: tensor(f(torch.as_tensor(x)))) for f in (
            torch.exp, torch.exp2, torch.log, torch.log2, torch.abs, torch.floor, torch.ceil, torch.sqrt))
