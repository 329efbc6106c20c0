"""least[..., t], greatest[..., t] = min, max of table[..., 64 t : 64 (t + 1)]        the operator, on every device

A few numbers a forward, shared by all layers: torch's own reductions serve.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ir import TILE


def bounds(table: Tensor) -> Tensor:
    """table [..., S] -> [..., S/TILE, 2], of the table's dtype; what the last tile lacks repeats the last position."""
    *lead, positions = table.shape
    tiles = -(-positions // TILE)
    if positions == 0:
        return table.new_empty([*lead, 0, 2])
    at = torch.arange(tiles * TILE, device=table.device).clamp(max=positions - 1)
    tiled = table.index_select(-1, at).unflatten(-1, (tiles, TILE))
    return torch.stack([tiled.amin(-1), tiled.amax(-1)], -1)
