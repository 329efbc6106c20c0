"""Peers that may be installed: FlashAttention-3 and FlashInfer; bound as `peers` says."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .attentions import DECODE, Attention
from .latents import PAGE
from .operands import Operands
from .ways import Call, Unfit, Ways


def fa3(copies: list[Operands]) -> Ways:
    """FlashAttention-3: [B, T, H, D]. In decode with its work scheduled by each call or by the first, and over pages of 64."""
    import flash_attn_interface as fa

    case = copies[0].case
    if case.group != DECODE:
        return [[functools.partial(_fa3_prefill, fa, case, _starts(copies[0]), *_tokens_first(each)) for each in copies]]
    binds = [_fa3_decode, _fa3_scheduled, *([] if case.keys % PAGE else [_fa3_paged])]
    return [[bind(fa, each) for each in copies] for bind in binds]


def _fa3_prefill(fa: Any, case: Attention, starts: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if case.documents > 1:
        size = case.document
        out = fa.flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, max_seqlen_q=size, max_seqlen_k=size, causal=True)
        out = _first(out)[None]
    else:
        out = fa.flash_attn_func(q, k, v, causal=True, window_size=(case.window - 1, 0) if case.window else (-1, -1))
    return _first(out).transpose(1, 2)


def _fa3_decode(fa: Any, given: Operands) -> Call:
    q, k, v = _tokens_first(given)
    lengths = _lengths(given)
    return lambda: _first(fa.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)).transpose(1, 2)


def _fa3_scheduled(fa: Any, given: Operands) -> Call:
    """The schedule of its work is made by the first call, and kept."""
    case, (q, k, v) = given.case, _tokens_first(given)
    lengths = _lengths(given)
    schedule = functools.lru_cache(maxsize=1)(lambda: fa.get_scheduler_metadata(
        case.batch, case.queries, case.keys, case.heads, case.kv_heads, case.head_dim, lengths, q.dtype,
        headdim_v=case.value_dim, causal=True))
    return lambda: _first(fa.flash_attn_with_kvcache(
        q, k, v, cache_seqlens=lengths, causal=True, scheduler_metadata=schedule())).transpose(1, 2)


def _fa3_paged(fa: Any, given: Operands) -> Call:
    """Pages [B * S / 64, 64, Hkv, D], copied untimed."""
    case, (q, k, v) = given.case, _tokens_first(given)
    k_pages, v_pages = (x.contiguous().view(-1, PAGE, *x.shape[2:]) for x in (k, v))
    table = torch.arange(len(k_pages), dtype=torch.int32, device=q.device).view(case.batch, -1)
    lengths = _lengths(given)
    return lambda: _first(fa.flash_attn_with_kvcache(
        q, k_pages, v_pages, cache_seqlens=lengths, page_table=table, causal=True)).transpose(1, 2)


def _lengths(given: Operands) -> Tensor:
    """Live keys: int32 [B]."""
    return torch.tensor(given.case.lengths, dtype=torch.int32, device=given.q.device)


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Older versions return the logsumexp as well."""
    return out[0] if isinstance(out, tuple) else out


def _tokens_first(given: Operands) -> tuple[Tensor, Tensor, Tensor]:
    return given.q.transpose(1, 2), given.k.transpose(1, 2), given.v.transpose(1, 2)


def _starts(given: Operands) -> Tensor:
    """Where each document starts, and the end: int32 [documents + 1]."""
    case = given.case
    return torch.arange(0, case.keys + 1, case.document, dtype=torch.int32, device=given.q.device)


INFER_PAGE = 16


def flashinfer(copies: list[Operands]) -> Ways:
    """Ragged prefill, and decode over pages of its own layout [pages, 2, Hkv, 16, D], copied and planned untimed."""
    import flashinfer as fi

    bind = _flashinfer_decode if copies[0].case.group == DECODE else _flashinfer_prefill
    return [[bind(fi, each) for each in copies]]


def _flashinfer_prefill(flashinfer: Any, given: Operands) -> Call:
    case, starts = given.case, _starts(given)
    q, k, v = (x[0] for x in _tokens_first(given))
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(_workspace(given.q.device), "NHD")
    wrapper.plan(
        starts, starts, case.heads, case.kv_heads, case.head_dim, head_dim_vo=case.value_dim, causal=True,
        window_left=case.window - 1 if case.window else -1, q_data_type=q.dtype, kv_data_type=q.dtype)
    return lambda: wrapper.run(q, k, v)[None].transpose(1, 2)


def _flashinfer_decode(flashinfer: Any, given: Operands) -> Call:
    case, device = given.case, given.q.device
    if case.queries > 1:
        raise Unfit("its decode takes one query")
    if any(length % INFER_PAGE for length in case.lengths):
        raise Unfit("live lengths are not whole pages")
    counts = torch.tensor([0, *(length // INFER_PAGE for length in case.lengths)])
    starts = counts.cumsum(0).to(torch.int32)
    both = torch.stack([given.k, given.v], 1).unflatten(3, (-1, INFER_PAGE))  # [B, 2, Hkv, S / 16, 16, D]
    pages = both.permute(0, 3, 1, 2, 4, 5).flatten(0, 1).contiguous()
    each = case.keys // INFER_PAGE
    indices = torch.cat([torch.arange(n // INFER_PAGE) + b * each for b, n in enumerate(case.lengths)]).to(device, torch.int32)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(device), "HND", use_tensor_cores=True)
    wrapper.plan(
        starts.to(device), indices, torch.full((case.batch,), INFER_PAGE, dtype=torch.int32, device=device), case.heads,
        case.kv_heads, case.head_dim, INFER_PAGE, q_data_type=given.q.dtype, kv_data_type=given.q.dtype)
    q = given.q[:, :, 0].contiguous()
    return lambda: wrapper.run(q, pages)[:, :, None]


def _workspace(device: torch.device) -> Tensor:
    return torch.empty(128 * 2**20, dtype=torch.uint8, device=device)
