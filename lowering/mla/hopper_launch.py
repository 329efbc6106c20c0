"""What the Hopper kernels of latents serve, their tiles and constants."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor

from ...ir import AttentionSpec
from ..choice import Choice, padded
from ..hopper.config import has_gluon
from ..machine import Machine
from ..tma import describable, unit_stride

FAMILIES = ("mla_hopper", "tokens_hopper", "mla_exchange", "tokens_exchange")
BY_TMA = ("mla_hopper", "mla_exchange")
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
    return unit_stride(q_latent) and unit_stride(q_rope) and describable(latent, rope)


def constants(choice: Choice, rank: int, width: int, paged: bool, in_parts: bool) -> dict[str, Any]:
    """The constexpr arguments."""
    found = {"R": rank, "P": width, "BLOCK_N": choice.block_n, "HALF": padded(rank) // 2, "IN_PAGES": paged}
    if choice.family.endswith("exchange"):
        block_b = choice.block_b if choice.programs else 0
        found |= {"BLOCK_P": choice.block_n, "BLOCK_B": block_b, "BLOCK_ROWS": choice.block_r}
        return found | ({"BLOCK_T": choice.block_t} if choice.family == "mla_exchange" else {})
    slots = 2 if choice.block_n <= 32 else 1
    return found | {"BLOCK_P": padded(width), "IN_PARTS": in_parts, "STAGES": choice.stages, "SLOTS": slots}


def tiles(rank: int, width: int, block_n: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of the tile of each descriptor, in the order of the kernel's arguments."""
    columns = max(64, padded(width)) if block_n == 64 else padded(width)
    return {"latent": (block_n, padded(rank) // 2), "rope": (block_n, columns)}
