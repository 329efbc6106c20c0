"""Random operands of a step over a pool of pages, of which some are chosen by the bounds of their keys

    k[b, h, j, :] = pages_k[pages[b, j // PAGE], h, j % PAGE, :]

One page in `every` matters, fewer than are chosen: who misses one is wrong, and what else is chosen weighs nothing. So the
answer is that of all keys, whatever the order of pages that promise alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .attentions import Attention
from .operands import Operands, matter, tables_of


@dataclass(frozen=True)
class PagedOperands(Operands):
    """k [P, Hkv, PAGE, D] and v [P, Hkv, PAGE, Dv]: pages in random order, each of one sequence; pages [B, S / PAGE] int32;
    bounds [P, Hkv, 2, D], the greatest of k and of -k."""

    pages: Tensor
    bounds: Tensor

    @classmethod
    def random(cls, case: Attention, device: str, dtype: torch.dtype, seed: int = 0) -> PagedOperands:
        torch.manual_seed(seed)
        q = torch.randn(case.batch, case.queries, case.heads, case.head_dim, device=device, dtype=dtype).transpose(1, 2)
        pages = torch.randperm(case.batch * (case.keys // case.page), device=device).to(torch.int32).view(case.batch, -1)
        k, v = (torch.randn(pages.numel(), case.kv_heads, case.page, dim, device=device, dtype=dtype)
                for dim in (case.head_dim, case.value_dim))
        numbers = torch.empty_like(pages).flatten()
        numbers[pages.flatten().long()] = torch.arange(pages.shape[1], device=device, dtype=torch.int32).repeat(case.batch)
        matter(q, k, numbers[:, None, None], case.every)
        bounds = torch.stack([k.amax(2), (-k).amax(2)], 2)
        return cls(case, q, k, v, tables_of(case, device), pages, bounds)

    def ours(self, dense: bool = False) -> Callable[[], Tensor]:
        """Our operator bound to these; `dense`: all keys, of a cache in one piece."""
        tables = list(self.tables)
        if dense:
            spec = dataclasses.replace(self.case, sparsity="").spec
            return functools.partial(torch.ops.flashmla.attend, self.q, *self.in_one_piece(), tables, [], [], spec)
        return functools.partial(
            torch.ops.flashmla.attend_paged, self.q, self.k, self.v, None, None, self.pages, "plain", tables, [], [],
            self.case.spec, self.bounds)

    def in_one_piece(self) -> tuple[Tensor, Tensor]:
        """k [B, Hkv, S, D] and v [B, Hkv, S, Dv], sequence by sequence: the pools and their copies are most of the memory."""
        case = self.case
        k, v = (x.new_empty(case.batch, case.kv_heads, case.keys, x.shape[3]) for x in (self.k, self.v))
        for b, own in enumerate(self.pages.long()):
            for whole, pool in ((k, self.k), (v, self.v)):
                whole[b] = pool[own].transpose(0, 1).flatten(1, 2)
        return k, v

    def keys(self, b: int, h: int) -> tuple[Tensor, Tensor]:
        own = self.pages[b].long()
        return self.k[own, h].flatten(0, 1), self.v[own, h].flatten(0, 1)
