"""Random operands of an attention over latents, and rows of its answer by the formula, in any dtype.

    p = softmax(scale q [latent ; rope]ᵀ where visible and chosen)      out = p latent
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .latents import PAGE, Latent

Place = tuple[int, int]
"""A row of the answer for all heads: sequence, query."""
ROWS = 16
CHOSEN_AT_ONCE = 1 << 24
"""Random numbers drawn at a time to choose tokens by."""


@dataclass(frozen=True)
class LatentOperands:
    """q [B, H, T, R + P] in the memory of [B, T, H, .]; latent [B, S, R] and rope [B, S, P], or both in one buffer of pages
    [PAGES, 64, R + P] in random order with `pages` [B, S / 64]; tokens [B, T, K]; first: each first query's position [B]."""

    case: Latent
    q: Tensor
    latent: Tensor
    rope: Tensor
    first: Tensor
    tokens: Tensor | None = None
    pages: Tensor | None = None

    @classmethod
    def random(cls, case: Latent, device: str, dtype: torch.dtype, seed: int = 0) -> LatentOperands:
        torch.manual_seed(seed)
        width = case.rank + case.rope
        q = torch.randn(case.batch, case.queries, case.heads, width, device=device, dtype=dtype).transpose(1, 2)
        first = torch.tensor([length - case.queries for length in case.lengths], device=device)
        pages = None
        if case.paged:
            pages = torch.randperm(case.batch * case.keys // PAGE, device=device).to(torch.int32).view(case.batch, -1)
            both = torch.randn(pages.numel(), PAGE, width, device=device, dtype=dtype)
            latent, rope = both[..., : case.rank], both[..., case.rank :]
        else:
            latent, rope = (torch.randn(case.batch, case.keys, n, device=device, dtype=dtype) for n in (case.rank, case.rope))
        return cls(case, q, latent, rope, first, _tokens(case, device) if case.tokens else None, pages)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.first,)

    def ours(self, dense: bool = False) -> Callable[[], Tensor]:
        """Our operator bound to these; `dense`: without the tokens."""
        rank = self.case.rank
        return functools.partial(
            torch.ops.flashmla.attend_latent, self.q[..., :rank], self.q[..., rank:], self.latent, self.rope,
            None if dense else self.tokens, self.pages, [self.first], [], [], self.case.spec)

    def places(self, random: torch.Generator) -> list[Place]:
        """A sample of the rows, the first and the last among them."""
        rows = self.case.batch * self.case.queries
        chosen = {0, rows - 1, *torch.randint(rows, (ROWS,), generator=random).tolist()}
        return sorted(divmod(at, self.case.queries) for at in chosen)

    def pick(self, out: Tensor, place: Place) -> Tensor:
        """Row [H, R] of out [B, H, T, R]."""
        return out[place[0], :, place[1]]

    def formula(self, place: Place, dtype: torch.dtype) -> Tensor:
        """The row [H, R]: products in `dtype`, softmax in at least float32 -> float64."""
        latent, rope = (x.to(dtype) for x in self.keys(place))
        s = self.pick(self.q, place).to(dtype) @ torch.cat([latent, rope], -1).T  # [H, n]
        p = (s.to(torch.promote_types(dtype, torch.float32)) * self.case.scale).softmax(-1).to(dtype)
        return (p @ latent).double()

    def keys(self, place: Place) -> tuple[Tensor, Tensor]:
        """latent [n, R] and rope [n, P] of the keys that one query sees."""
        b, i = place
        at = torch.arange(self.case.lengths[b] - self.case.queries + i + 1, device=self.q.device)
        if self.tokens is not None:
            at = self.tokens[b, i]
        if self.pages is None:
            return self.latent[b, at], self.rope[b, at]
        page = self.pages[b].long()[at // PAGE]
        return self.latent[page, at % PAGE], self.rope[page, at % PAGE]


def _tokens(case: Latent, device: str) -> Tensor:
    """[B, T, K] int64, as a topk has them: K keys of those before the first query, in no order, none twice."""
    before, rows = min(case.lengths) - case.queries + 1, case.batch * case.queries
    step = max(1, CHOSEN_AT_ONCE // before)
    drawn = [torch.rand(min(step, rows - at), before, device=device).topk(case.tokens).indices for at in range(0, rows, step)]
    return torch.cat(drawn).view(case.batch, case.queries, -1)
