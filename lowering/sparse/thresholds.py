"""out = softmax over the tiles that are kept by their own logits, on the CPU: exp and p.v of the others are not computed

Rows go in blocks of ROWS, keys in tiles of KEYS; each query head decides for itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ir import AttentionSpec
from ..cpu_rows import Hull, Part, Rows, logits, merge, sink_of

ROWS, KEYS = 128, 64


def by_threshold(rows: Rows, hull: Hull, out: Tensor) -> Tensor:
    """Writes out [B, H, R, Dv] of one block of rows -> which tiles were kept [B, H, tiles], from that of hull.start on."""
    start = hull.start // KEYS * KEYS
    a = in_tiles(logits(rows, hull, start, hull.stop), hull)                                  # [B, H, R, tiles, KEYS]
    kept = needed(a.amax(-1), _limit(rows.plan.spec, a.shape[3]))
    sink = sink_of(rows)
    for b in range(a.shape[0]):
        for h in range(a.shape[1]):
            tiles = kept[b, h].nonzero()
            keys = (start + tiles * KEYS + torch.arange(KEYS)).flatten().clamp(hull.start, hull.stop - 1)
            v = rows.v[b, h // rows.group, keys].to(a.dtype)
            part = part_of(a[b, h, :, tiles[:, 0]].flatten(1), v)
            out[b, h] = merge([part], None if sink is None else sink.expand(*a.shape[:3], 1)[b, h])
    return kept


def in_tiles(a: Tensor, hull: Hull) -> Tensor:
    """Logits a [..., keys] from the tile of hull.start to hull.stop -> [..., tiles, KEYS], -inf outside the hull."""
    a[..., :hull.start % KEYS] = -torch.inf
    return F.pad(a, (0, -a.shape[-1] % KEYS), value=-torch.inf).unflatten(-1, (-1, KEYS))


def _limit(spec: AttentionSpec, tiles: int) -> float:
    """The natural logarithm of the ratio of weights below which a tile goes."""
    whole = tiles * KEYS if spec.sparsity.policy == "error_budget" else 1
    return math.log(spec.sparsity.value / whole)


def needed(best: Tensor, limit: float) -> Tensor:
    """best [..., R, tiles], the logits of the tiles' best keys -> bool [..., tiles]: whether any row may need a tile.

    Tiles are met inward: the first, then from the last backwards; a row may need one whose best key reaches exp(limit) of
    the summed weights of the best keys met before.
    """
    inward = torch.cat([best[..., :1], best[..., 1:].flip(-1)], -1)
    before = F.pad(inward.logcumsumexp(-1), (1, 0), value=-torch.inf)[..., :-1]
    need = (~(inward < before + limit) & (inward != -torch.inf)).any(-2)
    return torch.cat([need[..., :1], need[..., 1:].flip(-1)], -1)


def part_of(a: Tensor, v: Tensor) -> Part:
    """a [R, N], v [N, Dv] -> the sum of exp(a - top) v, of exp(a - top), and top [R, 1]."""
    if a.shape[1] == 0:
        return a.new_zeros(a.shape[0], v.shape[1]), a.new_zeros(a.shape[0], 1), a.new_full((a.shape[0], 1), -torch.inf)
    top = a.amax(-1, keepdim=True)
    p = (a - torch.where(top == -torch.inf, 0, top)).exp_()
    return p @ v, p.sum(-1, keepdim=True), top
