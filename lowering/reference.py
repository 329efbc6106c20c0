"""out = softmax(score(q kᵀ) where visible, with the sink in the denominator) v: the truth, in float64

Every other lowering is measured against this one. Indices are plain tensors over the whole [B, H, T, S]; nothing is
skipped, split or folded. `dtype` below float64 gives the same formula in the working dtype, which sets the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ir import AttentionSpec
from .torch_expr import compile
from .torch_index import box, values


def visible(spec: AttentionSpec, batch: int, heads: int, rows: int, columns: int, *env: Any) -> Tensor:
    """Bool [B, H, T, S]: which keys a query sees. `env` is tables, sizes, scalars."""
    index = [values(at) for at in box(batch, heads, (0, rows), (0, columns))]
    seen = compile(spec.predicate, torch.float64)(*index, *env)
    return torch.as_tensor(seen).expand(batch, heads, rows, columns)


def in_order(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, each sum taken one fused multiply-add after another in the dtype of x: how a GPU's thread takes it."""
    total = x.new_zeros(()).double()
    for at in range(x.shape[-1]):
        total = (total + x[..., at, None].double() * y[..., at, None, :].double()).to(x.dtype).double()
    return total.to(x.dtype)


def logits(
    q: Tensor, k: Tensor, tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: AttentionSpec,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> tuple[Tensor, Tensor]:
    """a [B, H, T, S], -inf where not visible, and the sink [B, H, T, 1], -inf without one. Products are in q's dtype."""
    env, real = (tables, sizes, scalars), torch.promote_types(q.dtype, torch.float32)
    k = k.repeat_interleave(spec.group, 1)
    shape = (*q.shape[:3], k.shape[2])
    index = [values(at) for at in box(shape[0], shape[1], (0, shape[2]), (0, shape[3]))]
    s = product(q, k.transpose(-1, -2)).to(real)
    a = torch.as_tensor(compile(spec.score, real)(*index, *env, s), dtype=real).expand(shape)
    sink = -torch.inf if spec.sink is None else compile(spec.sink, real)(*index, *env)
    return a.masked_fill(~visible(spec, *shape, *env), -torch.inf), torch.as_tensor(sink, dtype=real).expand(*shape[:3], 1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], text: str,
    dtype: torch.dtype = torch.float64, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """q [B, H, T, D], k [B, H/group, S, D], v [B, H/group, S, Dv] -> [B, H, T, Dv], contiguous, of `dtype`.

    Products are in `dtype`, the softmax in at least float32, as models write it.
    """
    spec = AttentionSpec.parse(text)
    a, sink = logits(q.to(dtype), k.to(dtype), tables, sizes, scalars, spec, product)
    return weighted(a, sink, v.to(dtype).repeat_interleave(spec.group, 1), product)


def weighted(a: Tensor, sink: Tensor, v: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Tensor:
    """softmax of a [B, H, T, S] and the sink [B, H, T, 1], times v [B, H, S, Dv], in v's dtype; 0 in a row of -inf alone."""
    a = torch.cat([a, sink], -1)
    p = (a - a.amax(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).min)).exp()
    total = p.sum(-1, keepdim=True)
    return product(torch.where(total == 0, 0, p / total)[..., :-1].to(v.dtype), v)
