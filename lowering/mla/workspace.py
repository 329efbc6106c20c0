"""Where parts are kept until `merge.py` has joined them: what `finish.py` writes"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..choice import Choice
from .exchange_launch import ROWS

PART_TYPE = torch.float16
"""Of the exchange kernels' parts, whose magnitudes are kept apart: half of the memory and of the traffic of float32."""


@dataclass(frozen=True)
class Workspace:
    """parts [.., R]; tops [.., 2], the magnitudes of their halves, if those are kept apart; lse [..]; cuts [items], where the
    parts of each item are, if that is not known beforehand. As `merge` takes them."""

    parts: Tensor
    tops: Tensor | None
    lse: Tensor
    cuts: Tensor | None


def workspace(choice: Choice, items: int, lanes: int, rank: int, device: torch.device) -> Workspace | None:
    """For the parts of `items` items, each in `lanes` boxes of rows; None if none is cut."""
    if not choice.programs and choice.kv_splits == 1:
        return None
    rows = ROWS * (choice.programs + (items - 1) * lanes if choice.programs else items * choice.kv_splits * lanes)
    cuts = torch.empty(items, dtype=torch.int64, device=device) if choice.programs else None
    parts = torch.empty((rows, rank), dtype=PART_TYPE, device=device)
    return Workspace(parts, torch.empty((rows, 2), device=device), torch.empty(rows, device=device), cuts)
