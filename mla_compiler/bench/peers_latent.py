"""FlashMLA, which reads latents; bound as `peers` says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .latents import PAGE
from .operands_latent import LatentOperands
from .ways import Call, Ways


def flashmla(copies: list[LatentOperands]) -> Ways:
    """FlashMLA: pages of 64 rows [latent ; rope], copied untimed; chosen tokens by its prefill: its decode is fp8."""
    import flash_mla as fm

    bind = _flashmla_sparse if copies[0].tokens is not None else _flashmla_dense
    return [[bind(fm, each) for each in copies]]


def _flashmla_dense(fm: Any, given: LatentOperands) -> Call:
    """Its schedule is made by the first call, and kept."""
    case, device = given.case, given.q.device
    pages, table = _pages(given)
    q, lengths = given.q.transpose(1, 2), torch.tensor(case.lengths, dtype=torch.int32, device=device)
    schedule, _ = fm.get_mla_metadata()
    return lambda: fm.flash_mla_with_kvcache(
        q, pages, table, lengths, case.rank, schedule, softmax_scale=case.scale, causal=case.queries > 1,
        use_legacy=True)[0].transpose(1, 2)


def _flashmla_sparse(fm: Any, given: LatentOperands) -> Call:
    """All queries in one call: q [B * T, H, .], latents [B * S, 1, .], indices [B * T, 1, K] among them."""
    case, tokens = given.case, given.tokens
    assert tokens is not None
    at = tokens + (torch.arange(case.batch, device=tokens.device) * case.keys)[:, None, None]
    indices = at.flatten(0, 1)[:, None].to(torch.int32)
    q = given.q.transpose(1, 2).flatten(0, 1)
    latents = _pages(given)[0].flatten(0, 1)
    return lambda: fm.flash_mla_sparse_fwd(q, latents, indices, case.scale, case.rank, use_legacy=True)[0].unflatten(
        0, (case.batch, case.queries)).transpose(1, 2)


def _pages(given: LatentOperands) -> tuple[Tensor, Tensor]:
    """[PAGES, 64, 1, R + P] and the table [B, S / 64]."""
    case = given.case
    both = torch.cat([given.latent, given.rope], -1).reshape(-1, PAGE, 1, case.rank + case.rope)
    if given.pages is not None:
        return both, given.pages
    return both, torch.arange(len(both), dtype=torch.int32, device=both.device).view(case.batch, -1)
