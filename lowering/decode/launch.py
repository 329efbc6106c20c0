"""Choice  =>  the launch of the decode kernel. Nothing is read back to the host, nothing is set to zero."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..choice import Choice, padded
from ..counters import counters
from ..held import Held, boxed
from ..held import arguments as arguments_of
from ..launch import launch as start
from ..tma import REGISTERS, describe


def launch(module: ModuleType, group: int, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held, given: list[Any],
           blocks: dict[str, Any], out: Tensor) -> None:
    """q [B, H, T, D], k [B, H/group, S, D], v [B, H/group, S, DV] -> out [B, H, T, DV]. `given`: the spec's operands."""
    batch, heads, queries, _ = q.shape
    items = -(-group * queries // choice.block_m) * batch * (heads // group)
    programs = choice.programs or choice.kv_splits * items
    few = programs // items if choice.programs else 0
    slots = 2 * programs if choice.programs else programs if choice.kv_splits > 1 else 0
    workspace = q.new_empty(max(1, slots * choice.block_m * (v.shape[3] + 1)), dtype=torch.float32)
    arguments = (q, q.stride(), *arguments_of(k), *arguments_of(v), out, out.stride(), workspace, counters(q.device, items),
                 batch, heads, queries, k.shape[2], choice.kv_splits, few, *given)
    start(module.decode, (programs,), arguments, {**blocks, **constants(choice)}, choice.warps, choice.stages, q.device.index)


def constants(choice: Choice) -> dict[str, Any]:
    """The constexpr arguments that prefill has not."""
    return {"BALANCED": choice.programs > 0, "BLOCK_B": choice.block_b, "BLOCK_T": choice.block_t, "BLOCK_R": choice.block_r}


def tiles(choice: Choice, head_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of the tile of each descriptor of the Hopper kernel."""
    return {"k": (choice.block_n, padded(head_dim)), "v": (choice.block_n, padded(value_dim))}


def hopper_constants(group: int, choice: Choice, head_dim: int, value_dim: int) -> dict[str, Any]:
    """The constexpr arguments of the Hopper kernel."""
    return {"D": head_dim, "DV": value_dim, "GROUP": group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
            "STAGES": choice.stages, "BLOCK_B": choice.block_b, "BLOCK_T": choice.block_t, "BLOCK_R": choice.block_r,
            "ROWS": rows_kept(group, choice)}


def rows_kept(group: int, choice: Choice) -> int:
    """Rows of a part, of each warpgroup, in the workspace: a multiple of 4."""
    return min(64, -(-group * choice.block_t // 4) * 4)


def registers(choice: Choice, unpacks: bool = False) -> int:
    """Per thread at the start of the Hopper kernel, of 64 K: a warpgroup for each 64 rows, or two for 16; two that unpack; one
    for the loading warp."""
    if choice.block_m == 64:
        return 128 if unpacks else 240
    return REGISTERS


def launch_hopper(module: ModuleType, group: int, choice: Choice, q: Tensor, k: Tensor | Held, v: Tensor | Held,
                  given: list[Any], out: Tensor) -> None:
    """As `launch`, on Hopper: k and v lie in what TMA can address, q and out have unit strides in their last dim."""
    batch, heads, queries, head_dim = q.shape
    items = -(-group * queries // choice.block_m) * batch * (heads // group)
    warpgroups = -(-choice.block_m // 64)
    slots = 2 * choice.programs * warpgroups
    workspace = q.new_empty(slots * rows_kept(group, choice) * (v.shape[3] + 1), dtype=torch.float32)
    k_tile, v_tile = tiles(choice, head_dim, v.shape[3]).values()
    boxes = [describe(part, *tile) for x, of in ((k, k_tile), (v, v_tile))
             for part, tile in zip(boxed(x), (of, (1, choice.block_n)), strict=False)]
    table = k.table() if isinstance(k, Held) else (None, None)
    arguments = (q, q.stride(), *boxes, *table, out, out.stride(), workspace,
                 counters(q.device, items * warpgroups), batch, heads, queries, k.shape[2], choice.programs // items, *given)
    start(module.decode_hopper, (choice.programs,), arguments, hopper_constants(group, choice, head_dim, v.shape[3]),
          choice.warps, choice.stages, q.device.index, maxnreg=registers(choice, len(boxes) == 4), launch_pdl=True)
