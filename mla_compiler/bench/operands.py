"""Random operands of an attention, and rows of its answer by the formula, in any dtype.

    p = softmax(scale q kᵀ where visible)      out = p v
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lowering.bounds import bounds
from .attentions import WIDTH, Attention
from .pool import PAGE, Stored, stored

Place = tuple[int, int, Tensor]
"""Rows of the answer: sequence, KV head, queries."""
PAIRS, ROWS = 16, 32
"""(sequence, KV head) pairs sampled, and query rows in each, beside the first and the last."""


@dataclass(frozen=True)
class Operands:
    """q [B, H, T, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], the tables of the spec. Memory as models have it:

    [B, T, H, D] from a projection; a cache is [B, Hkv, S, D].
    """

    case: Attention
    q: Tensor
    k: Tensor
    v: Tensor
    tables: tuple[Tensor, ...]
    stored: Stored | None = None

    @classmethod
    def random(cls, case: Attention, device: str, dtype: torch.dtype, seed: int = 0) -> Operands:
        torch.manual_seed(seed)

        def tensor(heads: int, length: int, dim: int, cache: bool = False) -> Tensor:
            shape = (case.batch, heads, length, dim) if cache else (case.batch, length, heads, dim)
            made = torch.randn(shape, device=device, dtype=dtype)
            return made if cache else made.transpose(1, 2)

        cache = case.decode
        q = tensor(case.heads, case.queries, case.head_dim)
        k, v = (tensor(case.kv_heads, case.keys, dim, cache) for dim in (case.head_dim, case.value_dim))
        if case.every > 1:
            _matter(q, k, case.every, PAGE if case.format else WIDTH)
        held = None
        if case.format:
            held, k, v = stored(k, v, case.format)
        return cls(case, q, k, v, _tables(case, device), held)

    def ours(self, dense: bool = False) -> Callable[[], Tensor]:
        """Our operator bound to these; `dense`: without the documents and the policy, not in pages."""
        spec, tables, pages = self.case.spec, list(self.tables), self.stored
        if pages is not None and not dense:
            held = pages.k, pages.v, pages.k_scales, pages.v_scales, pages.table, self.case.format
            bounds = pages.bounds() if self.case.sparsity else None
            return functools.partial(torch.ops.flashmla.attend_paged, self.q, *held, tables, [], [], spec, bounds)
        if dense:
            spec = dataclasses.replace(self.case, documents=1, sparsity="").spec
            tables = [] if self.case.documents > 1 else tables
        return functools.partial(torch.ops.flashmla.attend, self.q, self.k, self.v, tables, [], [], spec)

    def places(self, random: torch.Generator) -> list[Place]:
        """A sample of the rows, the first and the last among them."""
        case, found = self.case, []
        last = case.batch * case.kv_heads - 1
        chosen = {0, last, *torch.randint(last + 1, (PAIRS,), generator=random).tolist()}
        for b, h in sorted(divmod(at, case.kv_heads) for at in chosen):
            at = torch.randint(case.queries, (ROWS,), generator=random)
            found.append((b, h, torch.cat([at, torch.tensor([0, case.queries - 1])]).unique().to(self.q.device)))
        return found

    def pick(self, out: Tensor, place: Place) -> Tensor:
        """Rows [group, queries, Dv] of out [B, H, T, Dv]."""
        b, h, i = place
        group = self.case.sharing
        return out[b, h * group:(h + 1) * group][:, i]

    def formula(self, place: Place, dtype: torch.dtype) -> Tensor:
        """The rows [group, queries, Dv]: products in `dtype`, softmax in at least float32 -> float64."""
        case, (b, h, i) = self.case, place
        seen = case.visible(b, i[:, None], torch.arange(case.keys, device=i.device)[None])  # [R, S]
        q = self.pick(self.q, place).to(dtype)  # [group, R, D]
        s = (q @ self.k[b, h].to(dtype).T).to(torch.promote_types(dtype, torch.float32)) * case.scale
        p = s.masked_fill(~seen, -math.inf).softmax(-1).to(dtype)
        return (p @ self.v[b, h].to(dtype)).double()


def _matter(q: Tensor, k: Tensor, every: int, width: int) -> None:
    """Written into the first channel: logits of one tile of `width` keys in `every`, the first among them, are 31 higher."""
    reach = 16.0
    q[..., 0] = reach
    tiles = torch.arange(k.shape[2], device=k.device) // width
    k[..., 0] = torch.where(tiles % every == 0, 0.5, -0.5) * 31 * k.shape[3]**0.5 / reach


def _tables(case: Attention, device: str) -> tuple[Tensor, ...]:
    if case.decode:
        return (torch.tensor([length - case.queries for length in case.lengths], device=device),)
    if case.documents > 1:
        ids = (torch.arange(case.keys, device=device) // case.document)[None]
        return ids, bounds(ids)
    return ()
