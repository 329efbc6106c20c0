"""The softmax over the tiles of keys that were chosen beforehand, on the CPU: of the others neither q.k nor p.v is computed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu_rows import Hull, Part, Rows, mask_of, merge, sink_of
from .cpu_choice import chosen
from .thresholds import KEYS, needed, part_of


def by_pages(rows: Rows, hull: Hull, known: tuple[Tensor, Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    """Writes out [B, H, R, Dv] of one block of rows -> of which tiles q.k and p.v were computed, two of [B, H, tiles]."""
    start = hull.start // KEYS * KEYS
    seen = visible(rows, hull, start)
    weighed = chosen(rows, known, start, hull.stop, seen)
    kept, sink = weighed.clone(), sink_of(rows)
    for b in range(out.shape[0]):
        for h in range(out.shape[1]):
            tiles = weighed[b, h].nonzero()[:, 0]
            keys = (start + tiles[:, None] * KEYS + torch.arange(KEYS)).flatten()
            own = seen.expand(*out.shape[:3], -1)[b, h][:, keys - start]
            part, again = attended(rows, b, h, keys.clamp(hull.start, hull.stop - 1), own)
            kept[b, h, tiles] = again
            out[b, h] = merge([part], None if sink is None else sink.expand(*out.shape[:3], 1)[b, h])
    return weighed, kept


def visible(rows: Rows, hull: Hull, start: int) -> Tensor:
    """Bool, broadcasting over [B, H, R, whole tiles from start]."""
    mask = mask_of(rows, hull, start, hull.stop)
    shape = (rows.q.shape[2], hull.stop - start)
    seen = torch.ones(1, 1, *shape, dtype=torch.bool) if mask is None else mask.expand(*mask.shape[:2], *shape).clone()
    seen[..., :hull.start - start] = False
    return F.pad(seen, (0, -shape[1] % KEYS))


def attended(rows: Rows, b: int, h: int, keys: Tensor, seen: Tensor) -> tuple[Part, Tensor]:
    """The softmax of one head over `keys` [N], of which seen [R, N]; with a threshold, over what that keeps of their tiles,
    a bool each."""
    plan = rows.plan
    k, v = (x[b, h // rows.group, keys].to(plan.dtype) for x in (rows.k, rows.v))
    s = (rows.q[b, h].to(plan.dtype) @ k.T)[None, None]
    j = keys.view(1, 1, 1, -1)
    a = torch.as_tensor(plan.score(b, h, rows.index[2], j, *rows.env, s), dtype=plan.dtype).expand(s.shape)[0, 0]
    a = a.masked_fill(~seen, -torch.inf)
    again = torch.ones(len(keys) // KEYS, dtype=torch.bool)
    if plan.spec.sparsity.then and len(keys):
        tiles = a.unflatten(1, (-1, KEYS))
        again = needed(tiles.amax(-1), math.log(plan.spec.sparsity.then))
        a, v = tiles[:, again].flatten(1), v.unflatten(0, (-1, KEYS))[again].flatten(0, 1)
    return part_of(a, v), again
