"""Which tiles of keys a block of rows attends, by what is known of every BOX keys, on the CPU

The algorithms of `promise.py`, of `estimate.py` and `rank.py`, and of `lsh.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu_rows import Rows, fold
from ..torch_index import axis
from .listing import BOX, CHUNK, planes
from .thresholds import KEYS

ALPHA = 0.5


def boxes_of(k: Tensor) -> tuple[Tensor, Tensor]:
    """k [B, H, S, D] -> centre and half extents of every BOX keys [B, H, ceil(S / BOX), D]."""
    least, greatest = _in_boxes(k).aminmax(dim=3)
    return (greatest + least) / 2, (greatest - least) / 2


def signatures_of(x: Tensor, centre: Tensor | float) -> tuple[Tensor, Tensor]:
    """x [B, H, S, D] -> signs [B, H, ceil(S / BOX), 64] of the mean of every BOX less centre, +1 or -1, and its length."""
    mean = _in_boxes(x).mean(3) - centre
    return torch.where(mean @ planes(x.shape[3], x.device).to(mean.dtype).T > 0, 1.0, -1.0), mean.norm(dim=-1)


def _in_boxes(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [B, H, ceil(S / BOX), BOX, D]; the last fills the last box."""
    short = -x.shape[2] % BOX
    x = torch.cat([x, x[:, :, -1:].expand(-1, -1, short, -1)], 2).unflatten(2, (-1, BOX))
    return x.to(torch.promote_types(x.dtype, torch.float32))


def known_of(k: Tensor, policy: str) -> tuple[Tensor, Tensor]:
    """What is known of the boxes of the keys."""
    return signatures_of(k, k.mean(2, keepdim=True, dtype=torch.float32)) if policy == "lsh" else boxes_of(k)


def chosen(rows: Rows, known: tuple[Tensor, Tensor], start: int, stop: int, seen: Tensor) -> Tensor:
    """seen [., ., R, keys from start] -> bool [B, H, tiles]: those in sight of one row that no row sees in part, if they are
    chosen; those that a row sees in part; and the first."""
    policy = rows.plan.spec.sparsity
    w = (matched if policy.policy == "lsh" else promised)(rows, known, start, stop, seen)
    tiles = seen.unflatten(3, (-1, KEYS))
    whole, some = tiles.all(-1).all(2), tiles.any(-1).any(2)                                  # [., ., tiles]
    always = some & ~whole
    always[..., 0] = some[..., 0]
    if policy.measure == "share":
        kept = promising(w, math.log(policy.value))
    else:
        kept = ranked(w, whole & ~always, policy.value, policy.measure == "mass")
    return (kept & some) | always


def promised(rows: Rows, boxes: tuple[Tensor, Tensor], start: int, stop: int, seen: Tensor) -> Tensor:
    """The logarithm of what each tile promises each row [B, H, R, tiles]; -inf where the row sees nothing of it."""
    q = fold(rows.q, rows.group).to(rows.plan.dtype)
    centre, half = (x[:, :, start // BOX:-(-stop // BOX)].to(q.dtype).mT for x in boxes)
    s = (q @ centre + ALPHA * q.abs() @ half).view(*rows.q.shape[:3], -1)
    return _by_tiles(rows, rows.index[2], s, start, seen)


def matched(rows: Rows, known: tuple[Tensor, Tensor], start: int, stop: int, seen: Tensor) -> Tensor:
    """The same of every BOX rows [B, H, R / BOX, tiles], by their signatures and those of the boxes of keys."""
    ours, length = signatures_of(rows.q, 0.0)
    signs, norms = (x[:, :, start // BOX:-(-stop // BOX)].repeat_interleave(rows.group, 1) for x in known)
    differ = (signs.shape[-1] - ours @ signs.mT) / 2                                           # bits
    s = (length[..., None] * norms[:, :, None] * torch.cos(differ * (math.pi / signs.shape[-1]))).to(rows.plan.dtype)
    i = (rows.first + torch.arange(s.shape[2]) * BOX + BOX // 2).clamp(max=rows.first + rows.q.shape[2] - 1).view(1, 1, -1, 1)
    seen = F.pad(seen, (0, 0, 0, -seen.shape[2] % BOX)).unflatten(2, (-1, BOX)).any(3)
    return _by_tiles(rows, i, s, start, seen)


def _by_tiles(rows: Rows, i: Any, s: Tensor, start: int, seen: Tensor) -> Tensor:
    """s [B, H, R, boxes], in units of q.k, of rows i -> the logarithms of the sums of exp(score) [B, H, R, tiles]."""
    first = start // BOX
    j = axis(3, first * BOX + BOX // 2, (first + s.shape[3]) * BOX, BOX)
    a = torch.as_tensor(rows.plan.score(*rows.index[:2], i, j, *rows.env, s), dtype=s.dtype).expand(s.shape)
    a = F.pad(a, (0, seen.shape[3] // BOX - a.shape[3]), value=-torch.inf)
    return a.masked_fill(~seen.unflatten(3, (-1, BOX)).any(-1), -torch.inf).unflatten(3, (-1, KEYS // BOX)).logsumexp(-1)


def promising(w: Tensor, limit: float) -> Tensor:
    """w [B, H, R, tiles] -> bool [B, H, tiles]: those that promise one row exp(limit) of what was met before, inward, CHUNK
    tiles at a time, and in the chunk itself."""
    kept, y = w.new_zeros(*w.shape[:2], w.shape[3], dtype=torch.bool), w[..., 0]
    for stop in range(w.shape[3], 1, -CHUNK):
        some = slice(max(stop - CHUNK, 1), stop)
        y = torch.logaddexp(y, w[..., some].logsumexp(-1))
        kept[..., some] = (w[..., some] >= y[..., None] + limit).any(2)
    return kept


def ranked(w: Tensor, candidates: Tensor, value: float, mass: bool) -> Tensor:
    """w [B, H, R, tiles], candidates [., ., tiles] -> bool [B, H, tiles]: of the candidates the fewest that have, by their mean
    share of a row's promises, `value` of the sum (mass); or that share of them, by their greatest share of a row's."""
    share = torch.where(w == -torch.inf, 0, w.softmax(-1))
    score = torch.where(candidates, share.mean(2) if mass else share.amax(2), -1.0)
    weight = (score if mass else torch.ones_like(score)) * (score >= 0)
    order = score.argsort(-1, descending=True)
    before = weight.gather(-1, order).cumsum(-1) - weight.gather(-1, order)
    taken = (before < value * weight.sum(-1, keepdim=True)) & (score.gather(-1, order) >= 0)
    cut = torch.where(taken, score.gather(-1, order), torch.inf).amin(-1, keepdim=True)       # ties stay, all of them
    return (score >= (cut if value < 1 else 0)) & (score >= 0)
