"""q, k, v as TMA descriptors, and the launch."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..choice import Choice, padded
from ..counters import counters
from ..launch import launch as start
from ..machine import MACHINES, machine_of
from ..tma import describe
from .config import ROWS, columns, out_columns, query_stages, registers, section

SHARED_MEMORY = MACHINES["sm_90"].shared_memory
ITEMS = 4
"""Messages of a block on their way: `messages.py`."""


def launch(
    module: ModuleType, group: int, choice: Choice, q: Tensor, k: Tensor, v: Tensor, given: list[Any], out: Tensor,
    classed: bool, listed: Tensor | None = None
) -> None:
    """Runs `choice` into out [B, H, T, DV]: unit stride in DV, rows of whole 16 bytes. listed [programs, capacity]: tiles that
    were chosen beforehand."""
    batch, heads, queries, head_dim = q.shape
    keys, value_dim = v.shape[2:]
    rows = -(-queries // choice.block_m)
    work = batch * heads * rows
    blocks = min(work, machine_of(q.device).processors) if choice.persistent else work
    room = -(-keys // choice.block_n) if classed or listed is not None else 1
    counter = counters(q.device, 1)
    lists = q.new_empty(blocks * ITEMS * room, dtype=torch.int32) if classed else counter if listed is None else listed
    of = (q, q, k, k, v, out)
    described, constants_ = _fixed(group, choice, head_dim, value_dim)
    descriptors = [tile and describe(x, *tile) for x, tile in zip(of, described, strict=True)]
    sizes = (heads, queries, keys, rows, section(batch * heads, group, keys, head_dim + value_dim), work, room)
    start(module.hopper, (blocks,), (*descriptors, counter, lists, *sizes, *given), constants_, choice.warps, choice.stages,
          q.device.index, maxnreg=registers(choice)[0])


@lru_cache(maxsize=1024)
def _fixed(
    group: int, choice: Choice, head_dim: int, value_dim: int
) -> tuple[tuple[tuple[int, int] | None, ...], dict[str, Any]]:
    """Tiles of the descriptors, and the constexpr arguments."""
    return tuple(tiles(choice, head_dim, value_dim).values()), constants(group, choice, head_dim, value_dim)


def tiles(choice: Choice, head_dim: int, value_dim: int) -> dict[str, tuple[int, int] | None]:
    """Rows and columns of the tile of each descriptor, in the order of the kernel's arguments; None where there is none."""
    wide, rest = columns(head_dim)
    out = out_columns(choice, head_dim, value_dim, SHARED_MEMORY)
    return {
        "q": (ROWS, wide), "q_rest": (ROWS, rest) if rest else None,
        "k": (choice.block_n, wide), "k_rest": (choice.block_n, rest) if rest else None,
        "v": (choice.block_n, padded(value_dim)), "out": (ROWS, out),
    }


def constants(group: int, choice: Choice, head_dim: int, value_dim: int) -> dict[str, Any]:
    """The constexpr arguments."""
    wide, rest = columns(head_dim)
    _, most, few = registers(choice)
    return {
        "GROUP": group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n, "BLOCK_D": wide,
        "BLOCK_REST": rest, "KEY_STAGES": choice.stages + choice.ahead, "STAGES": choice.stages,
        "QUERIES": query_stages(choice, head_dim, value_dim, SHARED_MEMORY),
        "PING_PONG": choice.ping_pong, "OVERLAP": choice.overlap, "REGISTERS": most, "FEW": few,
    }
