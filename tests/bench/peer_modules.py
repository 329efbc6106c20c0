"""FA3 and FlashInfer as their documentation has them, in torch: the layouts and conventions, none of the speed."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """q [T, H, D], k, v [S, Hkv, D] -> [T, H, Dv], causal, aligned to the end."""
    i, j = torch.arange(len(q))[:, None] + len(k) - len(q), torch.arange(len(k))[None]
    seen = (j <= i) & (i - j < window if window else j >= 0)
    out = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), seen, enable_gqa=True)
    return out.transpose(0, 1)


def fa3() -> ModuleType:
    module = ModuleType("flash_attn_interface")

    def flash_attn_func(q, k, v, causal=False, window_size=(-1, -1)):
        assert causal and window_size[1] == (-1 if window_size[0] < 0 else 0)
        return torch.stack([attention(*each, window_size[0] + 1) for each in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
        assert causal and max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
        spans = zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_k[1:].tolist(), strict=True)
        return torch.cat([attention(q[a:b], k[a:b], v[a:b]) for a, b in spans])

    def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens, causal=False):
        assert causal and cache_seqlens.dtype == torch.int32
        each = zip(q, k_cache, v_cache, cache_seqlens.tolist(), strict=True)
        return torch.stack([attention(a, b[:n], c[:n]) for a, b, c, n in each]), "logsumexp"

    module.__dict__.update(
        flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_with_kvcache)
    return module


class Ragged:
    """BatchPrefillWithRaggedKVCacheWrapper: q, k, v [tokens, heads, D]."""

    def __init__(self, workspace, layout):
        assert layout == "NHD" and workspace.dtype == torch.uint8

    def plan(self, qo_indptr, kv_indptr, heads, kv_heads, head_dim_qk, *, head_dim_vo, causal, window_left,
             q_data_type, kv_data_type):
        assert causal and torch.equal(qo_indptr, kv_indptr)
        self.starts, self.window, self.shapes = qo_indptr.tolist(), window_left + 1, (heads, kv_heads, head_dim_qk, head_dim_vo)

    def run(self, q, k, v):
        assert (q.shape[1], k.shape[1], k.shape[2], v.shape[2]) == self.shapes
        spans = zip(self.starts[:-1], self.starts[1:], strict=True)
        return torch.cat([attention(q[a:b], k[a:b], v[a:b], self.window) for a, b in spans])


class Paged:
    """BatchDecodeWithPagedKVCacheWrapper: q [B, H, D], pages [pages, 2, Hkv, page, D]."""

    def __init__(self, workspace, layout, use_tensor_cores):
        assert layout == "HND"

    def plan(self, indptr, indices, last_page_len, heads, kv_heads, head_dim, page_size, q_data_type, kv_data_type):
        assert indptr.dtype == indices.dtype == torch.int32 and last_page_len.eq(page_size).all()
        self.pages = [indices[a:b] for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)]

    def run(self, q, pages):
        mine = [pages[at].transpose(2, 3).transpose(1, 0).flatten(1, 2) for at in self.pages]  # each [2, S, Hkv, D]
        return torch.stack([attention(one[None], *kv)[0] for one, kv in zip(q, mine, strict=True)])


def flashinfer() -> ModuleType:
    module = ModuleType("flashinfer")
    module.__dict__.update(BatchPrefillWithRaggedKVCacheWrapper=Ragged, BatchDecodeWithPagedKVCacheWrapper=Paged)
    return module
