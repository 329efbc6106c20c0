"""q, k, v as TMA descriptors, and the launch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from ..choice import Choice, padded
from ..machine import machine_of
from ..tma import REGISTERS, describe
from .config import ROWS, columns, section


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
