"""Which tiles of keys each tile of rows attends, before it does: the boxes of the keys, then what they promise."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...ir import AttentionSpec
from ..choice import Choice, padded
from ..launch import launch

BOX = 16
"""Keys of a box. SmolLM2 at 2048 tokens, any tile of 64 keys with 0.05 of a row: boxes of 16 leave out 44%, of 32 and of 64
as much at a higher loss."""
CHUNK = 16
BLOCK_X = 8


def listed(module: ModuleType, spec: AttentionSpec, choice: Choice, q: Tensor, k: Tensor, given: list[Any],
           upcast: bool) -> tuple[Tensor, Tensor, int]:
    """(tiles [programs, capacity] int16 or int32, counts [programs] int32, capacity) for the programs of `choice`.

    module: the `promise` of the spec; given: its operands. Nothing is read back: what is not listed is left as it was.
    """
    batch, heads, queries, head_dim = q.shape
    programs, capacity = batch * heads * -(-queries // choice.block_m), -(-k.shape[2] // choice.block_n)
    tiles = q.new_empty(programs, capacity, dtype=torch.int16 if capacity < 1 << 15 else torch.int32)
    counts = q.new_empty(programs, dtype=torch.int32)
    centre, half = boxes_of(k)
    arguments = (q, q.stride(), centre, half, tiles, counts, spec.sparsity.value, heads, queries, k.shape[2], centre.shape[2],
                 capacity, *given)
    fixed = constants(spec, choice, head_dim, upcast)
    launch(module.promise, (programs,), arguments, fixed, choice.warps, 1, q.device.index)
    return tiles, counts, capacity


def constants(spec: AttentionSpec, choice: Choice, head_dim: int, upcast: bool) -> dict[str, Any]:
    """The constexpr arguments of `promise`."""
    return {
        "D": head_dim, "GROUP": spec.group, "BLOCK_M": choice.block_m, "BLOCK_N": choice.block_n,
        "BLOCK_D": padded(head_dim), "BOX": BOX, "CHUNK": CHUNK, "UPCAST": upcast,
    }


def boxes_of(k: Tensor) -> tuple[Tensor, Tensor]:
    """k [B, H, S, D] -> centre and half extents of every BOX keys [B, H, ceil(S / BOX), D], in k's dtype."""
    from .boxes import boxes

    batch, heads, keys, head_dim = k.shape
    count = -(-keys // BOX)
    centre, half = (k.new_empty(batch, heads, count, head_dim) for _ in range(2))
    fixed = {"D": head_dim, "BLOCK_D": padded(head_dim), "BLOCK_X": BLOCK_X, "BOX": BOX}
    grid = (batch * heads * -(-count // BLOCK_X),)
    launch(boxes, grid, (k, k.stride(), centre, half, heads, keys, count), fixed, 4, 1, k.device.index)
    return centre, half
