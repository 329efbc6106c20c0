"""Which tiles of keys a policy keeps, and the softmax over them: the truth, in float64, a few lines a policy

One tile of rows of one KV head at a time: a [R, S] are its logits, -inf where not visible; `width` keys make a tile; `order`
is the order in which the tiles are met, each once. What is kept is a bool [tiles]. The softmax is taken over what is kept:

    out = sum_{j kept} exp(a_j) v_j / sum_{j kept} exp(a_j)
    |out - dense| <= 2 * dropped * max |v|        dropped = sum_{j not kept} exp(a_j) / sum_j exp(a_j), the largest of any row
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...sparsity import Sparsity


def in_tiles(a: Tensor, width: int) -> Tensor:
    """[R, S] -> [R, tiles, width]; keys past the end are not visible."""
    return F.pad(a, (0, -a.shape[-1] % width), value=-math.inf).unflatten(-1, (-1, width))


def inward(count: int) -> list[int]:
    """The first tile, where a softmax keeps its sink, then from the last backwards: the largest weights come early."""
    return [0, *range(count - 1, 0, -1)]


def everything(a: Tensor, width: int) -> Tensor:
    return torch.ones(-(-a.shape[-1] // width), dtype=torch.bool)


def threshold(a: Tensor, width: int, ratio: float, order: Sequence[int]) -> Tensor:
    """A tile goes if in every row the weight of its best key is below `ratio` of those of the tiles met before, summed.

    What is met counts whether it is kept or not, so a larger ratio never keeps more. The first tile stays.
    """
    best = in_tiles(a, width).amax(-1)[:, list(order)]                                       # [R, tiles], in the order met
    before = F.pad(best.logcumsumexp(-1), (1, 0), value=-math.inf)[:, :-1]
    small = (best < before + math.log(ratio)) | (best == -math.inf)
    kept = torch.empty(best.shape[1], dtype=torch.bool)
    kept[list(order)] = ~small.all(0)
    kept[order[0]] = True
    return kept


def error_budget(a: Tensor, width: int, budget: float, order: Sequence[int]) -> Tensor:
    """`threshold` by so small a ratio that no row can lose more than `budget`:

        share of a tile <= width exp(best) / sum_j exp(a_j) <= width * ratio        since the best keys are some of all keys
    """
    return threshold(a, width, budget / (len(order) * width), order)


def promises(q: Tensor, k: Tensor, box: int, alpha: float) -> Tensor:
    """q [R, D], k [S, D] -> [R, boxes] in units of q.k, for every `box` keys; alpha = 1 is no less than any q.k of the box."""
    k = torch.cat([k, k[-1:].expand(-len(k) % box, -1)]).unflatten(0, (-1, box))
    centre, half = (k.amax(1) + k.amin(1)) / 2, (k.amax(1) - k.amin(1)) / 2
    return q @ centre.T + alpha * q.abs() @ half.T


def pages_share(w: Tensor, share: float, chunk: int) -> Tensor:
    """w [R, tiles], logarithms of what the tiles promise, -inf where the row sees nothing of them. A tile stays if it promises
    one row `share` of what the tiles met before and those of its chunk do; they are met inward, `chunk` at a time."""
    kept, y = torch.zeros(w.shape[1], dtype=torch.bool), w[:, 0]
    kept[0] = True
    for stop in range(w.shape[1], 1, -chunk):
        some = slice(max(stop - chunk, 1), stop)
        y = torch.logaddexp(y, w[:, some].logsumexp(-1))
        kept[some] = (w[:, some] >= y[:, None] + math.log(share)).any(0)
    return kept


def ranked(w: Tensor, candidates: Tensor, value: float, mass: bool) -> Tensor:
    """w [R, tiles] as above, candidates bool [tiles]: of these the fewest that make, by their scores, `value` of all of it.

    share(i, tile) = exp(w) / sum_tiles exp(w); a tile's score is its greatest share, and each counts as one; or the mean of
    its shares, and each counts for that (mass). Tiles of equal scores go together.
    """
    share = w.softmax(-1).nan_to_num(0.0)
    score = (share.mean(0) if mass else share.amax(0)).masked_fill(~candidates, -1.0)
    weight = (score if mass else torch.ones_like(score)).masked_fill(~candidates, 0.0)
    kept = torch.zeros_like(candidates)
    for cut in score[candidates].unique().flip(0):
        if value < 1 and weight[kept].sum() >= value * weight.sum():
            break
        kept = candidates & (score >= cut)
    return kept


def matches(q: Tensor, k: Tensor, mean: Tensor, box: int, planes: Tensor) -> Tensor:
    """q [R, D], k [S, D], mean [D], planes [bits, D] -> [ceil(R / box), ceil(S / box)] in units of q.k: of mean queries and
    mean keys, by the signs of their products with the planes; two directions differ in a bit with probability angle / pi."""
    q, k = (torch.cat([x, x[-1:].expand(-len(x) % box, -1)]).unflatten(0, (-1, box)).mean(1) for x in (q, k))
    k = k - mean
    differ = ((q @ planes.T > 0)[:, None] != (k @ planes.T > 0)[None]).double().mean(-1)
    return q.norm(dim=-1)[:, None] * k.norm(dim=-1)[None] * torch.cos(math.pi * differ)


def kept_by(policy: Sparsity, a: Tensor, width: int, first: int | None = None) -> Tensor:
    """What a policy that goes by the logits alone keeps, when a kernel meets the tiles from `first` on inward.

    first: that of the hull of the rows; the first of which anything is visible, if it is not given.
    """
    seen = in_tiles(a, width).isfinite().any(-1).any(0).nonzero().flatten().tolist()
    if not seen:
        return ~everything(a, width)
    first, last = seen[0] if first is None else first, seen[-1] + 1
    own = {"threshold": threshold, "error_budget": error_budget}[policy.policy]
    kept = ~everything(a, width)
    kept[first:last] = own(a[:, first * width:last * width], width, policy.value, inward(last - first))
    return kept


def attend(a: Tensor, kept: Tensor, v: Tensor, width: int) -> Tensor:
    """a [R, S], kept [tiles], v [S, Dv] -> [R, Dv]; 0 in a row of which nothing is kept."""
    a = a.masked_fill(~kept.repeat_interleave(width)[:a.shape[1]], -math.inf)
    p = (a - a.amax(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).min)).exp()
    total = p.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, p / total) @ v


def dropped(a: Tensor, kept: Tensor, width: int) -> Tensor:
    """The share of each row's softmax that is not kept [R]; 0 in a row that sees nothing."""
    gone = a.masked_fill(kept.repeat_interleave(width)[:a.shape[1]], -math.inf)
    share = (gone.logsumexp(-1) - a.logsumexp(-1)).exp()
    return torch.where(share.isnan(), 0, share)
