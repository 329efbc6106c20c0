"""Which tiles of keys a block of rows needs, by what the boxes of their keys promise, and the softmax over those: on the CPU

The algorithm of `promise.py` and `listed.py`. Of a tile that is not needed neither q.k nor p.v is computed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu_rows import Hull, Part, Rows, fold, mask_of, merge, sink_of
from ..torch_index import axis
from .listing import BOX, CHUNK
from .thresholds import KEYS, needed, part_of

ALPHA = 0.5


def boxes_of(k: Tensor) -> tuple[Tensor, Tensor]:
    """k [B, H, S, D] -> centre and half extents of every BOX keys [B, H, ceil(S / BOX), D]."""
    short = -k.shape[2] % BOX
    k = torch.cat([k, k[:, :, -1:].expand(-1, -1, short, -1)], 2).unflatten(2, (-1, BOX))
    least, greatest = k.amin(3), k.amax(3)
    return (greatest + least) / 2, (greatest - least) / 2


def by_pages(rows: Rows, hull: Hull, boxes: tuple[Tensor, Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    """Writes out [B, H, R, Dv] of one block of rows -> of which tiles q.k and p.v were computed, two of [B, H, tiles]."""
    start = hull.start // KEYS * KEYS
    seen = visible(rows, hull, start)
    weighed = promising(promised(rows, boxes, start, hull.stop, seen), seen, math.log(rows.plan.spec.sparsity.value))
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


def promised(rows: Rows, boxes: tuple[Tensor, Tensor], start: int, stop: int, seen: Tensor) -> Tensor:
    """The logarithm of what each tile promises each row [B, H, R, tiles]; -inf where the row sees nothing of it."""
    plan, first, last = rows.plan, start // BOX, -(-stop // BOX)
    q = fold(rows.q, rows.group).to(plan.dtype)
    centre, half = (x[:, :, first:last].to(plan.dtype).mT for x in boxes)
    s = (q @ centre + ALPHA * q.abs() @ half).view(*rows.q.shape[:3], last - first)
    j = axis(3, first * BOX + BOX // 2, last * BOX, BOX)
    a = torch.as_tensor(plan.score(*rows.index, j, *rows.env, s), dtype=plan.dtype).expand(s.shape)
    a = F.pad(a, (0, seen.shape[3] // BOX - a.shape[3]), value=-torch.inf)
    return a.masked_fill(~seen.unflatten(3, (-1, BOX)).any(-1), -torch.inf).unflatten(3, (-1, KEYS // BOX)).logsumexp(-1)


def promising(w: Tensor, seen: Tensor, limit: float) -> Tensor:
    """w [B, H, R, tiles], seen [., ., R, keys] -> which tiles are attended [B, H, tiles].

    The first; those that a row sees in part; and those that promise one row exp(limit) of what was met before, inward, CHUNK
    tiles at a time, and in the chunk itself.
    """
    tiles = seen.unflatten(3, (-1, KEYS))
    whole, some = tiles.all(-1).all(2), tiles.any(-1).any(2)                                  # [., ., tiles]
    kept, y = (some & ~whole).expand(*w.shape[:2], -1).clone(), w[..., 0]
    kept[..., 0] = some[..., 0]
    for stop in range(w.shape[3], 1, -CHUNK):
        chunk = w[..., max(stop - CHUNK, 1):stop]
        y = torch.logaddexp(y, chunk.logsumexp(-1))
        kept[..., max(stop - CHUNK, 1):stop] |= (chunk >= y[..., None] + limit).any(2) & some[..., max(stop - CHUNK, 1):stop]
    return kept


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
