"""out = softmax(score(q_latent cᵀ + q_rope ropeᵀ) where visible and chosen) c: the truth of attend_latent, in float64

k = [c ; rope] and v = c are shared by all heads; pages are gathered, packed latents unpacked, tokens become a dense mask.
`dtype` below float64 gives the same formula in the working dtype, which sets the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...ir import AttentionSpec
from ..fp8 import dequantize
from ..reference import logits, weighted


def paged(x: Tensor, pages: Tensor) -> Tensor:
    """[PAGES, 64, n] by pages [B, N] -> [B, 64 * N, n]"""
    return x[pages.long()].flatten(1, 2)


def chosen(tokens: Tensor, keys: int) -> Tensor:
    """tokens [B, T, K] -> bool [B, 1, T, S]: the keys that a row names. Entries outside [0, S) name none."""
    at = torch.arange(keys, device=tokens.device)
    return (tokens[..., None] == at).any(-2)[:, None]


def attend_latent(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor | None, tokens: Tensor | None, pages: Tensor | None,
    tables: Sequence[Tensor], sizes: Sequence[int], scalars: Sequence[float], text: str, dtype: torch.dtype = torch.float64,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """q_latent [B, H, T, R], q_rope [B, H, T, P], latent [B, S, R], rope [B, S, P] -> [B, H, T, R], contiguous, of `dtype`."""
    if pages is not None:
        latent, rope = paged(latent, pages), None if rope is None else paged(rope, pages)
    if rope is None:
        latent, rope = dequantize(latent, q_latent.shape[3], q_latent.dtype, dtype)
    spec = replace(AttentionSpec.parse(text), group=q_latent.shape[1])
    q, k = torch.cat([q_latent, q_rope], -1).to(dtype), torch.cat([latent, rope], -1).to(dtype)[:, None]
    a, sink = logits(q, k, tables, sizes, scalars, spec, product)
    if tokens is not None:
        a = a.masked_fill(~chosen(tokens, k.shape[2]), -torch.inf)
    return weighted(a, sink, latent.to(dtype)[:, None].expand(-1, q.shape[1], -1, -1), product)
