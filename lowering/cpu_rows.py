"""softmax(score(q kᵀ)) v for some query rows, over the hull of those rows and no key outside it

`Rows` is one block of query rows. `fused` is F.scaled_dot_product_attention over the hull; `exact` writes the softmax
out, in the accumulation type, over any part of the hull; `merge` joins parts n, each with its maximum m_n:

    out = sum_n exp(m_n - m) out_n / sum_n exp(m_n - m) total_n        m = max_n m_n        (a sink is a part whose out is 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import expr as E
from ..ir import TILE
from .cpu_plan import Plan
from .torch_index import Axis, Value, axis, box, values

FEW_ROWS = 16
"""Up to so many query rows, reading the keys costs more than computing with them."""


@dataclass(frozen=True)
class Rows:
    """q [B, H, R, D], the rows `first` ... `first + R` of all queries; k [B, H/group, S, D]; v [B, H/group, S, Dv]."""

    plan: Plan
    q: Tensor
    k: Tensor
    v: Tensor
    first: int
    env: tuple[Any, ...]

    @property
    def group(self) -> int:
        return self.plan.spec.group

    @property
    def index(self) -> tuple[int | Axis, int | Axis, int | Axis]:
        return box(self.q.shape[0], self.q.shape[1], (self.first, self.first + self.q.shape[2]), (0, 1))[:3]


@dataclass(frozen=True)
class Hull:
    """Keys [start, stop): every visible one. Whether lo, hi and the residue still have to be asked within."""

    start: int
    stop: int
    lo: Value | None
    hi: Value | None
    residue: bool


def hull_of(rows: Rows) -> Hull | None:
    """The hull of all the rows together; None if they see no key."""
    plan, index, length = rows.plan, rows.index, rows.k.shape[2]
    lo, hi = plan.lo(*index, None, *rows.env), plan.hi(*index, None, *rows.env)
    (lo_least, lo_most), (hi_least, hi_most) = _range(lo), _range(hi)
    start, stop = int(min(max(lo_least, 0), length)), int(min(max(hi_most, 0), length))
    if start >= stop:
        return None
    hull = Hull(start, stop, lo if lo_most > start else None, hi if hi_least < stop else None, plan.residue is not None)
    return _by_tiles(rows, hull) if plan.tile and rows.q.shape[2] > 1 else hull


def _by_tiles(rows: Rows, hull: Hull) -> Hull | None:
    """Narrowed to the tiles in which the residue is somewhere true; not asked if it is everywhere."""
    assert rows.plan.tile is not None
    b, h, _ = rows.index
    last, (start, stop) = rows.first + rows.q.shape[2], (hull.start // TILE * TILE, hull.stop)
    i, j = axis(2, rows.first // TILE * TILE, last, TILE), axis(3, start, stop, TILE)
    classes = torch.as_tensor(rows.plan.tile(b, h, i, j, *rows.env))
    columns = classes.reshape(-1, classes.shape[-1] if classes.dim() else 1).amax(0).nonzero().flatten().tolist()
    if not columns:
        return None
    first, end = max(start + columns[0] * TILE, hull.start), min(start + (columns[-1] + 1) * TILE, hull.stop)
    return Hull(first, end, hull.lo, hull.hi, bool((classes != 2).any()))


def _range(x: Value) -> tuple[float, float]:
    if not isinstance(x, Tensor):
        return x, x
    least, most = x.aminmax()
    return least.item(), most.item()


def mask_of(rows: Rows, hull: Hull, start: int, stop: int) -> Tensor | None:
    """Bool, broadcasting over [B, H, R, stop - start]: what is visible in this part of the hull; None if all of it."""
    j = axis(3, start, stop)
    terms: list[Any] = []
    if hull.lo is not None:
        terms.append(hull.lo <= values(j))
    if hull.hi is not None:
        terms.append(values(j) < hull.hi)
    if hull.residue and rows.plan.residue is not None:
        terms.append(rows.plan.residue(*rows.index, j, *rows.env))
    if not terms:
        return None
    mask = reduce(lambda one, other: one & other, terms)
    if rows.q.shape[2] == 1 and isinstance(mask, Tensor) and mask.all():
        return None  # one row of an input mask is, most often, its hull
    return mask if isinstance(mask, Tensor) else None if mask else torch.zeros(1, 1, 1, 1, dtype=torch.bool)


def fused(rows: Rows, hull: Hull, scale: float, out: Tensor) -> None:
    """score = scale*s + bias, by one call of SDPA, into out [B, H, R, D] of any strides."""
    plan = rows.plan
    k, v = (_dense(x.narrow(2, hull.start, hull.stop - hull.start)) for x in (rows.k, rows.v))
    mask = mask_of(rows, hull, hull.start, hull.stop)
    if plan.bias is not None:
        bias = torch.as_tensor(plan.bias(*rows.index, axis(3, hull.start, hull.stop), *rows.env), dtype=plan.dtype)
        bias = bias if bias.ndim else bias.view(1, 1, 1, 1)  # one number, the same for all
        mask = bias if mask is None else torch.where(mask, bias, -torch.inf)
    if plan.sink is not None:
        k, v, mask = _with_sink(rows, k, v, mask)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], rows.q.shape[2], k.shape[2])
    if rows.group == 1 or rows.q.shape[2] > FEW_ROWS:
        out.copy_(F.scaled_dot_product_attention(rows.q, k, v, attn_mask=mask, scale=scale, enable_gqa=rows.group > 1))
        return
    # A group's queries go together, so that a key is read once for all of them.
    found = F.scaled_dot_product_attention(fold(rows.q, rows.group), k, v, attn_mask=_fold_mask(rows, mask), scale=scale)
    apart = (*k.shape[:2], rows.group, *out.shape[2:])
    out.view(apart).copy_(found.view(apart))


def fold(x: Tensor, group: int) -> Tensor:
    """[B, H, R, D] -> [B, H/group, group*R, D]"""
    batch, heads, length, dim = x.shape
    return x.reshape(batch, heads // group, group * length, dim)


def _fold_mask(rows: Rows, mask: Tensor | None) -> Tensor | None:
    if mask is None or (mask.shape[1] == 1 and rows.q.shape[2] == 1):
        return mask
    heads = 1 if mask.shape[1] == 1 else rows.k.shape[1]
    return mask.expand(-1, heads * rows.group, -1, -1).unflatten(1, (heads, rows.group)).flatten(2, 3)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _with_sink(rows: Rows, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A sink is one more key with a logit of its own (k = 0, bias = sink) and no value (v = 0).

    Masked keys fill up to a multiple of 32: matrix products of bfloat16 are slow at odd lengths.
    """
    assert rows.plan.sink is not None
    seen, fill = k.shape[2], 31 - k.shape[2] % 32
    sink = torch.as_tensor(rows.plan.sink(*rows.index, None, *rows.env), dtype=rows.plan.dtype)
    if mask is None:
        mask = sink.new_zeros(1, 1, 1, 1)
    elif mask.dtype is torch.bool:
        mask = torch.where(mask, 0, sink.new_full((), -torch.inf))
    lead = torch.broadcast_shapes(mask.shape[:3], sink.shape[:3])
    columns = [mask.expand(*lead, seen), sink.expand(*lead, 1), sink.new_full((*lead, fill), -torch.inf)]
    return F.pad(k, (0, 0, 0, 1 + fill)), F.pad(v, (0, 0, 0, 1 + fill)), torch.cat(columns, -1)


Part: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of some keys: sum_j exp(a_j - m) v_j [B, H, R, Dv], sum_j exp(a_j - m) and m = max_j a_j [B, H, R, 1]; m -inf if none."""


def logits(rows: Rows, hull: Hull, start: int, stop: int) -> Tensor:
    """a [B, H, R, stop - start] in plan.dtype, -inf where not visible."""
    plan = rows.plan
    q, k = (x.to(plan.dtype) for x in (fold(rows.q, rows.group), rows.k[:, :, start:stop]))
    s = (q @ k.transpose(-1, -2)).view(*rows.q.shape[:3], stop - start)
    a = torch.as_tensor(plan.score(*rows.index, axis(3, start, stop), *rows.env, s), dtype=plan.dtype).expand(s.shape)
    a = a.contiguous() if E.s in plan.spec.score.free_symbols else a.clone()                  # no table is written to
    for at, end in _edges(hull, start, stop):
        mask = mask_of(rows, hull, at, end) if at < end else None
        if mask is not None:
            a[..., at - start:end - start].masked_fill_(~mask, -torch.inf)
    return a


def _edges(hull: Hull, start: int, stop: int) -> tuple[tuple[int, int], ...]:
    """Parts of [start, stop) outside which every row sees every key."""
    if hull.residue:
        return ((start, stop),)
    inside = start if hull.lo is None else min(max(int(_range(hull.lo)[1]), start), stop)
    beyond = stop if hull.hi is None else max(min(int(_range(hull.hi)[0]), stop), inside)
    return (start, inside), (beyond, stop)


def exact(rows: Rows, hull: Hull, start: int, stop: int) -> Part:
    """The softmax written out over the keys [start, stop), in plan.dtype."""
    a = logits(rows, hull, start, stop)
    top = a.amax(-1, keepdim=True)
    p = (a - torch.where(top == -torch.inf, 0, top)).exp_()
    v = rows.v[:, :, start:stop].to(rows.plan.dtype)
    out = (fold(p, rows.group) @ v).view(*p.shape[:3], v.shape[-1])
    return out, p.sum(-1, keepdim=True), top


def sink_of(rows: Rows) -> Tensor | None:
    """The logit of the key that has no value, broadcasting over [B, H, R, 1]; None if there is none."""
    sink = rows.plan.sink
    return None if sink is None else torch.as_tensor(sink(*rows.index, None, *rows.env), dtype=rows.plan.dtype)


def merge(parts: Sequence[Part], sink: Tensor | None) -> Tensor:
    """The softmax over all the parts and the sink; 0 where no part saw a key."""
    peak = reduce(torch.maximum, [top for _, _, top in parts] + ([] if sink is None else [sink]))
    peak = torch.where(peak == -torch.inf, 0, peak)
    weights = [(top - peak).exp() for _, _, top in parts]
    total = sum(weight * part[1] for weight, part in zip(weights, parts, strict=True))
    if sink is not None:
        total = total + (sink - peak).exp()
    out = sum(torch.where(weight == 0, 0, weight * part[0]) for weight, part in zip(weights, parts, strict=True))
    return torch.where(total == 0, 0, out / total)
