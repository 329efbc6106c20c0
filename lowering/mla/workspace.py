"""Where parts are kept until `merge.py` has joined them: what `finish.py` writes"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..choice import Choice


@dataclass(frozen=True)
class Workspace:
    """parts [.., R]; lse [..]; cuts [items], where the parts of each item are, if that is not known beforehand. As `merge`
    takes them."""

    parts: Tensor
    lse: Tensor
    cuts: Tensor | None


def workspace(choice: Choice, items: int, lanes: int, rank: int, out: Tensor) -> Workspace | None:
    """For the parts of `items` items, each in `lanes` boxes of rows, rounded as `out` is; None if none is cut."""
    if not choice.programs and choice.kv_splits == 1:
        return None
    rows = choice.block_m * (choice.programs + (items - 1) * lanes if choice.programs else items * choice.kv_splits * lanes)
    cuts = out.new_empty(items, dtype=torch.int64) if choice.programs else None
    return Workspace(out.new_empty((rows, rank)), out.new_empty(rows, dtype=torch.float32), cuts)
