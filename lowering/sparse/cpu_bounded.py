"""out = softmax over the keys of the pages whose bounds promise most, on the CPU: of the others nothing is read

    promise(n) = max over the rows of a KV head of score(relu(q) . bounds[page n, g, 0] + relu(-q) . bounds[page n, g, 1])

As `bounded.py` and `chosen.py` do it: the first page and the last ones always, of those that promise the same the later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...sparsity import Sparsity
from ..cpu_plan import Plan
from ..cpu_rows import Rows, fold, merge, sink_of
from ..held import Held
from ..torch_index import axis
from .cpu_pages import attended
from .paging import kept


def attend(
    q: Tensor, k: Tensor, v: Tensor, held: Held, hull: tuple[Tensor, Tensor], bounds: Tensor, plan: Plan, policy: Sparsity,
    env: tuple[Any, ...], out: Tensor,
) -> Tensor:
    """Writes out [B, H, T, Dv]. k and v: the tensors that the pages, `held`, stand for; hull: first and end of each row of the
    batch, [B or 1] each. plan: of the spec that leaves nothing out."""
    rows, page, batch = Rows(plan, q, k, v, 0, env), held.store.shape[2], len(q)
    spans = torch.stack([x.clamp(0, k.shape[2]).expand(batch) for x in hull], 1).long().tolist()
    sink, seen = sink_of(rows), visible(rows)
    for b, (begin, end) in enumerate(spans):
        if begin >= end:
            out[b] = 0
            continue
        first, count = begin // page, -(-end // page) - begin // page
        score = promised(rows, bounds[held.pages[b, first:first + count].long()], b, first, page)           # [G, pages]
        for g, numbers in enumerate(chosen(score, q.shape[2], page, policy)):
            keys = ((first + numbers)[:, None] * page + torch.arange(page)).flatten()
            keys = keys[(keys >= begin) & (keys < end)]
            for h in range(g * rows.group, (g + 1) * rows.group):
                part, _ = attended(rows, b, h, keys, seen[b, min(h, seen.shape[1] - 1)][:, keys])
                out[b, h] = merge([part], None if sink is None else sink.expand(*q.shape[:3], 1)[b, h])
    return out


def visible(rows: Rows) -> Tensor:
    """Bool [B, 1 or H, T, S]: lo <= j < hi."""
    j = torch.arange(rows.k.shape[2])
    lo, hi = (torch.as_tensor(bound(*rows.index, None, *rows.env)) for bound in (rows.plan.lo, rows.plan.hi))
    seen = (lo <= j) & (j < hi)
    return seen.expand(len(rows.q), seen.shape[1] if seen.dim() == 4 else 1, rows.q.shape[2], len(j))


def promised(rows: Rows, bounds: Tensor, b: int, first: int, page: int) -> Tensor:
    """bounds [pages, G, 2, D] of row b of the batch, from page `first` on -> the greatest promise to a row of each KV head
    [G, pages]; NaN, of which nothing is known, is infinite."""
    plan, count = rows.plan, len(bounds)
    q = fold(rows.q[b:b + 1], rows.group)[0].to(plan.dtype)                                    # [G, group * T, D]
    most, least = bounds.to(plan.dtype).permute(2, 1, 3, 0)                                    # [G, D, pages]
    s = (q.clamp(min=0) @ most + (-q).clamp(min=0) @ least).view(1, *rows.q.shape[1:3], count)
    j = axis(3, first * page + page // 2, (first + count) * page, page)
    a = torch.as_tensor(plan.score(b, *rows.index[1:], j, *rows.env, s), dtype=plan.dtype).expand(s.shape)
    return a.nan_to_num(torch.inf, torch.inf, -torch.inf).view(len(q), -1, count).amax(1)


def chosen(score: Tensor, queries: int, page: int, policy: Sparsity) -> list[Tensor]:
    """score [G, pages] -> of each head the numbers of the pages that are kept, in ascending order."""
    count = score.shape[1]
    score = score.clone()
    score[:, 0] = torch.inf
    score[:, max(count - 1 - -(-queries // page), 0):] = torch.inf
    order = score.flip(1).argsort(dim=1, descending=True, stable=True)[:, :kept(count, queries, page, policy)]
    return list((count - 1 - order).sort(1).values)
