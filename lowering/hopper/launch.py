"""q, k, v as TMA descriptors, and the launch. Triton is imported at the first call."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..choice import Choice, padded
from ..machine import machine_of
from .config import ROWS, columns, section

REGISTERS = 168
"""Per thread at the start: 12 warps together have 64 K."""


def describable(*tensors: Tensor) -> bool:
    """Whether TMA can address them: a unit stride in the last dim, 16-byte multiples in the others, an aligned start."""
    return all(_describable(x) for x in tensors)


def _describable(x: Tensor) -> bool:
    strides = [stride * x.itemsize for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]
    aligned = all(0 < stride < 1 << 40 and stride % 16 == 0 for stride in strides)
    return aligned and (x.stride(3) == 1 or x.shape[3] == 1) and x.data_ptr() % 16 == 0


def launch(
    module: ModuleType, group: int, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor
) -> None:
    """Runs `choice` into out [B, H, T, DV]: unit stride in DV, rows of whole 16 bytes."""
    batch, heads, queries, head_dim = q.shape
    rows = -(-queries // choice.block_m)
    work = batch * heads * rows
    grid = (min(work, machine_of(q.device).processors) if choice.persistent else work,)
    of = {"q": q, "q_rest": q, "k": k, "k_rest": k, "v": v}
    descriptors = [describe(of[name], *tile) for name, tile in tiles(choice, head_dim, v.shape[3]).items()]
    module.hopper[grid](
        *descriptors, out, out.stride(), heads, queries, k.shape[2], rows,
        section(batch * heads, group, k.shape[2], head_dim + v.shape[3]), work, *given,
        **constants(group, choice, head_dim, v.shape[3]), num_warps=choice.warps, maxnreg=REGISTERS,
    )


def tiles(choice: Choice, head_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of the tile of each descriptor, in the order of the kernel's arguments."""
    wide, rest = columns(head_dim)
    return {
        "q": (ROWS, wide), "q_rest": (ROWS, rest or wide),
        "k": (choice.block_n, wide), "k_rest": (choice.block_n, rest or wide), "v": (choice.block_n, padded(value_dim)),
    }


def constants(group: int, choice: Choice, head_dim: int, value_dim: int) -> dict[str, Any]:
    """The constexpr arguments."""
    wide, rest = columns(head_dim)
    return {
        "DV": value_dim, "GROUP": group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "BLOCK_D": wide,
        "BLOCK_REST": rest, "STAGES": choice.stages, "PING_PONG": choice.ping_pong,
    }


def layout(rows: int, dim: int, dtype: torch.dtype) -> Any:
    """How a tile [1, 1, rows, dim] lies in shared memory."""
    from triton.experimental.gluon import language as gl

    kind = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([1, 1, rows, dim], kind)


def describe(x: Tensor, rows: int, dim: int) -> Any:
    """x [B, H, S, D] in tiles of rows x dim; what lies outside reads as 0. The stride of a size of 1 is never used."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    unused = -(-x.numel() // 8) * 8
    strides = [stride if size > 1 else unused for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, dim], layout(rows, dim, x.dtype))
