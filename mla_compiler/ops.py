"""flashmla::* operators: schemas and fakes. Torch only; `lowering` registers what they do.

    sdpa       F.scaled_dot_product_attention, kept whole through AOTAutograd until it is understood
    attend     an attention whose meaning is `spec` (ir.AttentionSpec)
    attend_latent  the same, of heads that share one latent: k = [latent; rope], v = latent
    attend_projected  the same from K = [W_uk c ; rope] and V = W_uv c: absorbed, or K and V made, as lengths come
    quantize_latent  a latent in 8 bits with its rope key: the packed form that attend_latent takes
    summarize  of a bool mask: per row the hull of visible keys, per tile whether none, some or all are visible
    bounds     of a table along its positions, say document numbers: the least and greatest value of each tile
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .ir import TILE, AttentionSpec

LIBRARY = torch.library.Library("flashmla", "DEF")
GROUP = 128
"""Channels of a packed latent that share a scale."""

_TAGS = (torch.Tag.pt2_compliant_tag,)
# Attention reads any strides: Inductor must not copy a cache to please us.
_FLEXIBLE = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

LIBRARY.define(
    "sdpa(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, "
    "bool enable_gqa) -> Tensor",
    tags=_TAGS,
)
LIBRARY.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor[] tables, SymInt[] sizes, float[] scalars, str spec) -> Tensor",
    tags=_FLEXIBLE,
)
LIBRARY.define(
    "attend_latent(Tensor q_latent, Tensor q_rope, Tensor latent, Tensor? rope, Tensor? tokens, Tensor? pages, "
    "Tensor[] tables, SymInt[] sizes, float[] scalars, str spec) -> Tensor",
    tags=_FLEXIBLE,
)
LIBRARY.define("quantize_latent(Tensor latent, Tensor rope) -> Tensor", tags=_FLEXIBLE)
LIBRARY.define(
    "attend_projected(Tensor q, Tensor latent, Tensor rope, Tensor[] keys, Tensor[] values, int[] starts, int rope_start, "
    "SymInt gain, Tensor[] tables, SymInt[] sizes, float[] scalars, str spec) -> Tensor",
    tags=_FLEXIBLE,
)
LIBRARY.define("summarize(Tensor mask) -> (Tensor, Tensor)", tags=_FLEXIBLE)
LIBRARY.define("bounds(Tensor table) -> Tensor", tags=_FLEXIBLE)


def output_like(q: Tensor, v: Tensor, heads_first: bool) -> Tensor:
    """Empty out [B, H, T, Dv] in the memory order a spec asks for."""
    return output_of(q, v.shape[-1], heads_first)


def output_of(q: Tensor, width: int, heads_first: bool) -> Tensor:
    """The same, `width` wide."""
    batch, heads, length, _ = q.shape
    if heads_first:
        return q.new_empty(batch, heads, length, width)
    return q.new_empty(batch, length, heads, width).transpose(1, 2)


def packed_width(rank: int, width: int) -> int:
    """Bytes of a packed token: a byte a channel, four a scale, two a rope channel."""
    return rank + 4 * (rank // GROUP) + 2 * width


def sdpa_output_like(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> Tensor:
    """Empty out of flashmla::sdpa. q [..., H, T, D], k [..., Hkv, S, D], v [..., Hkv, S, Dv] -> [..., H, T, Dv].

    Leading dimensions broadcast. The memory is [B, T, H, Dv] where q is [B, H, T, D] and nothing broadcasts.
    """
    lead = q.shape[:-2] if enable_gqa else torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if q.dim() == 4 and lead == q.shape[:-2]:
        return output_like(q, v, heads_first=False)
    return q.new_empty(*lead, q.shape[-2], v.shape[-1])


@torch.library.register_fake("flashmla::sdpa", lib=LIBRARY)
def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> Tensor:
    return sdpa_output_like(q, k, v, enable_gqa)


@torch.library.register_fake("flashmla::attend", lib=LIBRARY)
def _attend(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str
) -> Tensor:
    return output_like(q, v, AttentionSpec.parse(spec).heads_first)


@torch.library.register_fake("flashmla::attend_latent", lib=LIBRARY)
def _attend_latent(
    q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor | None, tokens: Tensor | None, pages: Tensor | None,
    tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str,
) -> Tensor:
    """q_latent [B, H, T, R], q_rope [B, H, T, P], latent [B, S, R], rope [B, S, P] -> [B, H, T, R].

    a[b,h,i,j] = score(q_latent[b,h,i] . latent[b,j] + q_rope[b,h,i] . rope[b,j]); out[b,h,i] = sum_j softmax(a)_j latent[b,j].
    tokens [B, T, K]: row (b, i) sees only keys tokens[b, i, :]. pages [B, S / 64] int32: key j is [pages[b, j // 64], j % 64].
    latent uint8 [B, S, R + R/32 + 2 P], or [PAGES, 64, .]: packed by quantize_latent, rope in it; rope is None.
    """
    return output_like(q_latent, q_latent, heads_first=False)


@torch.library.register_fake("flashmla::quantize_latent", lib=LIBRARY)
def _quantize_latent(latent: Tensor, rope: Tensor) -> Tensor:
    """latent [..., R], rope [..., P] in 16 bits -> uint8 [..., R + R/32 + 2 P]; the layout stands in lowering/fp8.py."""
    return latent.new_empty([*latent.shape[:-1], packed_width(latent.shape[-1], rope.shape[-1])], dtype=torch.uint8)


@torch.library.register_fake("flashmla::attend_projected", lib=LIBRARY)
def _attend_projected(
    q: Tensor, latent: Tensor, rope: Tensor, keys: list[Tensor], values: list[Tensor], starts: list[int], rope_start: int,
    gain: int, tables: list[Tensor], sizes: list[int], scalars: list[float], spec: str,
) -> Tensor:
    """q [B, H, T, D], latent [B, S, R], rope [B, S, P] -> [B, H, T, Dv].

    Channels [start, start + size) of K are the latent times keys [H, size, R], those from rope_start on are rope; V is the
    latent times values [H, size, R], one after the other. gain > 0: attention over the latent itself; else over K and V.
    """
    return output_of(q, sum(weight.shape[1] for weight in values), AttentionSpec.parse(spec).heads_first)


@torch.library.register_fake("flashmla::summarize", lib=LIBRARY)
def _summarize(mask: Tensor) -> tuple[Tensor, Tensor]:
    """mask [B?, H?, T?, S] bool (1 where broadcast) -> hull [B?, H?, T?, 2] int32, classes [B?, H?, T?/TILE, S/TILE] int8."""
    *lead, rows, columns = mask.shape
    tiles = [(rows + TILE - 1) // TILE, (columns + TILE - 1) // TILE]
    return mask.new_empty([*lead, rows, 2], dtype=torch.int32), mask.new_empty([*lead, *tiles], dtype=torch.int8)


@torch.library.register_fake("flashmla::bounds", lib=LIBRARY)
def _bounds(table: Tensor) -> Tensor:
    """table [..., S] -> [..., S/TILE, 2]."""
    *lead, positions = table.shape
    return table.new_empty([*lead, (positions + TILE - 1) // TILE, 2])


def _autocast_sdpa(device_type: str) -> Callable[..., Tensor]:
    """SDPA under autocast computes in the autocast dtype; so does the operator that stands for it."""
    key = torch._C.DispatchKey.AutocastCUDA if device_type == "cuda" else torch._C.DispatchKey.AutocastCPU

    def sdpa(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, *rest: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        cast = [x.to(dtype) if x is not None and x.is_floating_point() else x for x in (q, k, v, attn_mask)]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return torch.ops.flashmla.sdpa.default(*cast, *rest)

    return sdpa


for _device_type, _key in (("cuda", "AutocastCUDA"), ("cpu", "AutocastCPU")):
    LIBRARY.impl("sdpa", _autocast_sdpa(_device_type), _key)
