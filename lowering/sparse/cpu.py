"""out = softmax over the tiles of keys that are kept, on the CPU: what is left out is not computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..cpu_plan import Plan
from ..cpu_rows import Rows, hull_of
from .cpu_pages import boxes_of, by_pages
from .thresholds import ROWS, by_threshold


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, env: tuple[Any, ...], out: Tensor) -> Tensor:
    """out [B, H, T, Dv], of any strides, written."""
    boxes = boxes_of(k) if plan.spec.sparsity.selects else None
    for first in range(0, q.shape[2], ROWS):
        rows = Rows(plan, q[:, :, first:first + ROWS], k, v, first, env)
        hull, block = hull_of(rows), out[:, :, first:first + ROWS]
        if hull is None:
            block.zero_()
        elif boxes is None:
            by_threshold(rows, hull, block)
        else:
            by_pages(rows, hull, boxes, block)
    return out
