"""The truth of `summarize`: loops over rows and tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir import TILE


def summarize(mask: Tensor) -> tuple[Tensor, Tensor]:
    """mask [..., T, S] bool -> hull [..., T, 2] int32, classes [..., T/TILE, S/TILE] int8."""
    *lead, rows, columns = mask.shape
    hull = torch.zeros(*lead, rows, 2, dtype=torch.int32)
    for at in mask.any(-1).nonzero():
        seen = mask[tuple(at)].nonzero()
        hull[tuple(at)] = torch.tensor([seen.min(), seen.max() + 1])
    classes = torch.zeros(*lead, -(-rows // TILE), -(-columns // TILE), dtype=torch.int8)
    for r in range(classes.shape[-2]):
        for c in range(classes.shape[-1]):
            tile = mask[..., r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE].flatten(-2)
            classes[..., r, c] = tile.any(-1).to(torch.int8) + tile.all(-1).to(torch.int8)
    return hull, classes
