"""Attention over rotated numbers: softmax((q H)(k H)^T) (v H) is the output times H, and H is its own inverse

`rotate.py` is the kernel; `mla_compiler.pool.formats` says which formats are rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..pool.formats import FORMATS
from ..pool.hadamard import rotated_block
from .held import Held
from .launch import launch

ROWS = 16
"""The fewest that the tensor cores multiply."""
CHUNK = 32
"""Channels of H at a time: 256 x 32 of float32 are 64 registers of each thread."""
WARPS = 4


def attend_rotated(run: Callable[[Tensor, Tensor], None], q: Tensor, k: Tensor | Held, v: Tensor | Held, out: Tensor) -> None:
    """run(q, out), which attends to k and v as they are stored, with q [B, H, T, D] and out [B, H, T, Dv] as they are meant."""
    keys, values = (isinstance(x, Held) and FORMATS[x.format].rotated for x in (k, v))
    given = turn(q, torch.empty_like(q)) if keys else q
    if not values:
        return run(given, out)
    stored = torch.empty_like(out, dtype=torch.float32)  # rounded once, after it is turned back
    run(given, stored)
    turn(stored, out)
    return None


def turn(x: Tensor, out: Tensor) -> Tensor:
    """x H into out, both [B, H, T, D]; out."""
    from .rotate import rotate

    batch, heads, rows, dim = x.shape
    block = rotated_block(dim)
    grid = -(-batch * heads * rows // ROWS), dim // block
    arguments = x, x.stride(), out, out.stride(), batch, heads, rows, block**-0.5
    with torch.cuda.device_of(x):
        launch(rotate, grid, arguments, constants(dim), WARPS, 1, x.device.index)
    return out


def constants(dim: int) -> dict[str, Any]:
    """The constexpr arguments of `rotate`."""
    block = rotated_block(dim)
    return {"BLOCK": block, "ROWS": ROWS, "CHUNK": min(CHUNK, block)}
