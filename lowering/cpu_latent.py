"""flashmla::attend_latent on the CPU, in ATen: attention of H heads over the one key [latent; rope], or over chosen tokens

Without tokens it is cpu.attend with k = [latent; rope], v = latent and one KV head. With tokens, rows go in blocks: the
latents that a row chose are gathered, the spec is asked at j = tokens, and no other key is read. Packed latents are unpacked
first, all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor

from ..ir import AttentionSpec
from ..ops import output_like
from . import cpu, fp8
from .checks_latent import check_latent_operands
from .cpu_plan import Plan, plan_of
from .cpu_rows import Part, merge
from .torch_index import box

GATHERED = 1 << 22
"""Elements of latents gathered at a time: 16 MiB of float32."""


def attend_latent(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor | None, tokens: Tensor | None, pages: Tensor | None,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], spec: str,
) -> Tensor:
    """out [B, H, T, R] in the memory order of output_like. Raises OperandError where operands and spec disagree."""
    check_latent_operands(q_latent, q_rope, latent, rope, tokens, pages, tables, sizes, scalars, spec)
    if pages is not None:
        latent, rope = (None if x is None else x[pages.long()].flatten(1, 2) for x in (latent, rope))
    if rope is None:
        latent, rope = fp8.dequantize(latent, q_latent.shape[3], q_latent.dtype, q_latent.dtype)
    q = torch.cat([q_latent, q_rope], -1)
    if tokens is None:
        k = torch.cat([latent, rope], -1)[:, None]
        return cpu.attend(q, k, latent[:, None], list(tables), list(sizes), list(scalars), _shared(spec, q.shape[1]))
    out = output_like(q_latent, q_latent, heads_first=False)
    if out.numel() == 0 or latent.shape[1] == 0 or tokens.shape[2] == 0:
        return out.zero_()
    plan = plan_of(spec, torch.promote_types(q.dtype, torch.float32))
    step = max(1, GATHERED // (q.shape[0] * tokens.shape[2] * q.shape[3]))
    for first in range(0, q.shape[2], step):
        rows = slice(first, first + step)
        _attend_tokens(plan, q[:, :, rows], latent, rope, tokens[:, rows], first, (tables, sizes, scalars), out[:, :, rows])
    return out


@lru_cache(maxsize=4096)
def _shared(spec: str, heads: int) -> str:
    """The spec with all heads on one KV head."""
    return str(replace(AttentionSpec.parse(spec), group=heads, heads_first=False))


def _attend_tokens(
    plan: Plan, q: Tensor, latent: Tensor, rope: Tensor, tokens: Tensor, first: int, env: tuple[Any, ...], out: Tensor
) -> None:
    """q [B, H, t, R + P], the rows from `first` on; tokens [B, t, K]. Writes out [B, H, t, R]."""
    batch, heads, rows, _ = q.shape
    keys = latent.shape[1]
    b, h, i, _ = box(batch, heads, (first, first + rows), (0, 1))
    j = tokens.long()[:, None]                                                              # [B, 1, t, K]
    seen = _seen(plan, (b, h, i), j, env) & (j >= 0) & (j < keys)
    at = torch.arange(batch)[:, None, None], j[:, 0].clamp(0, keys - 1)
    v, turned = latent[at].to(plan.dtype), q.transpose(1, 2).to(plan.dtype)                 # [B, t, K, R], [B, t, H, R + P]
    s = (turned @ torch.cat([v, rope[at].to(plan.dtype)], -1).mT).transpose(1, 2)           # [B, H, t, K]
    a = torch.as_tensor(plan.score(b, h, i, j, *env, s), dtype=plan.dtype).expand(s.shape)
    a = torch.where(seen, a, -torch.inf)
    top = a.amax(-1, keepdim=True)
    p = (a - torch.where(top == -torch.inf, 0, top)).exp()
    part: Part = ((p.transpose(1, 2) @ v).transpose(1, 2), p.sum(-1, keepdim=True), top)
    sink = None if plan.sink is None else torch.as_tensor(plan.sink(b, h, i, None, *env), dtype=plan.dtype)
    out.copy_(merge([part], sink))


def _seen(plan: Plan, index: tuple[Any, Any, Any], j: Tensor, env: tuple[Any, ...]) -> Tensor:
    """Bool, broadcasting over [B, H, t, K]: what the spec says of these keys."""
    terms: list[Any] = [plan.lo(*index, None, *env) <= j, j < plan.hi(*index, None, *env)]
    if plan.residue is not None:
        terms.append(plan.residue(*index, j, *env))
    return torch.as_tensor(reduce(lambda one, other: one & other, terms))
