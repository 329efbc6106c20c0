"""What the Hopper kernel serves; latents as TMA descriptors, and its constants. Triton is imported at the first call."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor

from ...ir import AttentionSpec
from ..choice import padded
from ..hopper.config import has_gluon
from ..machine import Machine

REGISTERS = 168
"""Per thread at the start: 12 warps together have 64 K."""
FAMILIES = ("mla_hopper", "tokens_hopper")
_RANKS = (128, 256, 512)


def serves(spec: AttentionSpec, rank: int, width: int, dtype: torch.dtype, machine: Machine) -> bool:
    """Whether there is a kernel: for hulls alone, in 16 bits, with rows of whole 16 bytes."""
    return (
        machine.backend == "cuda" and machine.capability == (9, 0) and dtype in (torch.float16, torch.bfloat16)
        and spec.residue == sympy.true and spec.tile is None
        and padded(rank) in _RANKS and rank % 8 == width % 8 == 0 and has_gluon()
    )


def addressable(q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor) -> bool:
    """Whether TMA can address the latents, and q has unit strides."""
    return all(_unit(x) for x in (q_latent, q_rope)) and all(_describable(x) for x in (latent, rope))


def _unit(x: Tensor) -> bool:
    return x.stride(-1) == 1 or x.shape[-1] == 1


def _describable(x: Tensor) -> bool:
    """A unit stride in the last dim, multiples of 16 bytes in the others, an aligned start."""
    strides = [stride * x.itemsize for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    aligned = all(0 < stride < 1 << 40 and stride % 16 == 0 for stride in strides)
    return aligned and _unit(x) and x.data_ptr() % 16 == 0


def constants(rank: int, width: int, block_n: int, stages: int, paged: bool, in_parts: bool) -> dict[str, Any]:
    """The constexpr arguments. Two slots for messages, if shared memory has room for them."""
    return {
        "R": rank, "P": width, "BLOCK_N": block_n, "HALF": padded(rank) // 2, "BLOCK_P": padded(width), "STAGES": stages,
        "SLOTS": 2 if block_n <= 32 else 1, "IN_PAGES": paged, "IN_PARTS": in_parts,
    }


def tiles(rank: int, width: int, block_n: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of the tile of each descriptor, in the order of the kernel's arguments."""
    return {"latent": (block_n, padded(rank) // 2), "rope": (block_n, padded(width))}


def layout(rows: int, dim: int, dtype: torch.dtype) -> Any:
    """How a tile [1, rows, dim] lies in shared memory."""
    from triton.experimental.gluon import language as gl

    kind = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([1, rows, dim], kind)


def describe(x: Tensor, rows: int, dim: int) -> Any:
    """x [B, S, D] in tiles of rows x dim; what lies outside reads as 0. The stride of a size of 1 is never used."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    unused = -(-x.numel() // 8) * 8
    strides = [stride if size > 1 else unused for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, rows, dim], layout(rows, dim, x.dtype))
