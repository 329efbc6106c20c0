"""out = softmax over the tiles of keys that are kept, on the CPU: what is left out is not computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ledger import COMPUTED, LEFT_OUT, NOTHING, WEIGHED, Call
from ..cpu_plan import Plan
from ..cpu_rows import Hull, Rows, hull_of, logits, sink_of
from .cpu_choice import known_of
from .cpu_pages import by_pages
from .thresholds import KEYS, ROWS, by_threshold, in_tiles


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, env: tuple[Any, ...], out: Tensor, call: Call | None = None) -> Tensor:
    """out [B, H, T, Dv], of any strides, written; with a `call`, also its steps and dropped."""
    known = known_of(k, plan.spec.sparsity.policy) if plan.spec.sparsity.selects else None
    for first in range(0, q.shape[2], ROWS):
        rows = Rows(plan, q[:, :, first:first + ROWS], k, v, first, env)
        hull, block = hull_of(rows), out[:, :, first:first + ROWS]
        if hull is None:
            block.zero_()
            continue
        if known is None:
            kept = by_threshold(rows, hull, block)
            weighed = torch.ones_like(kept)
        else:
            weighed, kept = by_pages(rows, hull, known, block)
        if call is not None:
            _note(call, rows, hull, weighed, kept)
    return out


def new_call(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Of an attention of which nothing has been computed."""
    batch, heads, queries, head_dim = q.shape
    steps = q.new_zeros(batch, heads, -(-queries // ROWS), -(-k.shape[2] // KEYS), dtype=torch.uint8)
    dropped = q.new_zeros(batch, heads, queries, dtype=torch.float32)
    return Call(steps, dropped, (min(queries, ROWS), KEYS), (head_dim, v.shape[3]), k.itemsize)


def count_all(q: Tensor, k: Tensor, v: Tensor, plan: Plan, env: tuple[Any, ...], call: Call) -> None:
    """Of an attention that leaves nothing out: every tile of which anything is visible is computed."""
    for first in range(0, q.shape[2], ROWS):
        rows = Rows(plan, q[:, :, first:first + ROWS], k, v, first, env)
        hull = hull_of(rows)
        if hull is not None:
            every = torch.ones(*q.shape[:2], -(-hull.stop // KEYS) - hull.start // KEYS, dtype=torch.bool)
            _note(call, rows, hull, every, every)


def _note(call: Call, rows: Rows, hull: Hull, weighed: Tensor, kept: Tensor) -> None:
    """Of one block of rows, of whose tiles [B, H, tiles] from that of hull.start on some were weighed, some of these kept."""
    whole = in_tiles(logits(rows, hull, hull.start // KEYS * KEYS, hull.stop), hull).logsumexp(-1)   # [B, H, R, tiles]
    gone = whole.masked_fill(kept[:, :, None], -torch.inf).logsumexp(-1)
    total, sink = whole.logsumexp(-1), sink_of(rows)
    if sink is not None:
        total = torch.logaddexp(total, sink.expand(*total.shape, 1)[..., 0])
    call.dropped[:, :, rows.first:rows.first + total.shape[2]] = torch.where(gone == -torch.inf, 0, (gone - total).exp())
    steps = torch.where(kept, COMPUTED, torch.where(weighed, WEIGHED, LEFT_OUT))
    seen, first = (whole != -torch.inf).any(2), hull.start // KEYS
    call.steps[:, :, rows.first // ROWS, first:first + steps.shape[2]] = torch.where(seen, steps, NOTHING).to(torch.uint8)
