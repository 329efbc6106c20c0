"""FA3, FlashInfer and FlashMLA as their documentation has them, in torch: the layouts and conventions, none of the speed."""

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

    def get_scheduler_metadata(batch, queries, keys, heads, kv_heads, head_dim, cache_seqlens, qkv_dtype, headdim_v, causal):
        assert causal and len(cache_seqlens) == batch and keys >= int(cache_seqlens.max())
        return batch, queries, heads, kv_heads, head_dim, headdim_v

    def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens, causal=False, page_table=None, scheduler_metadata=None):
        assert causal and cache_seqlens.dtype == torch.int32
        if page_table is not None:
            assert page_table.dtype == torch.int32
            k_cache, v_cache = (x[page_table.long()].flatten(1, 2) for x in (k_cache, v_cache))
        if scheduler_metadata is not None:
            assert scheduler_metadata == (*q.shape[:3], *k_cache.shape[2:], v_cache.shape[3])
        each = zip(q, k_cache, v_cache, cache_seqlens.tolist(), strict=True)
        return torch.stack([attention(a, b[:n], c[:n]) for a, b, c, n in each]), "logsumexp"

    module.__dict__.update(
        flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_with_kvcache, get_scheduler_metadata=get_scheduler_metadata)
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


def flash_mla() -> ModuleType:
    module = ModuleType("flash_mla")

    def get_mla_metadata():
        return {}, None

    def flash_mla_with_kvcache(q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, **options):
        """q [B, T, H, D], k_cache [PAGES, 64, 1, D]."""
        softmax_scale, causal = options["softmax_scale"], options["causal"]
        assert options["use_legacy"] and block_table.dtype == cache_seqlens.dtype == torch.int32
        assert k_cache.shape[1:3] == (64, 1)
        assert tile_scheduler_metadata in ({}, {"of": len(q)}) and causal == (q.shape[1] > 1)
        tile_scheduler_metadata["of"] = len(q)
        keys = [k_cache[pages.long()].flatten(0, 2)[:n] for pages, n in zip(block_table, cache_seqlens.tolist(), strict=True)]
        outs = []
        for one, k in zip(q, keys, strict=True):
            i, j = torch.arange(len(one))[:, None] + len(k) - len(one), torch.arange(len(k))[None]
            outs.append(latent(one, k, softmax_scale, head_dim_v, j <= i))
        return torch.stack(outs), "logsumexp"

    def flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v, use_legacy):
        """q [T, H, D], kv [S, 1, D], indices [T, 1, K]."""
        assert use_legacy and indices.dtype == torch.int32 and kv.shape[1] == 1
        rows = [latent(one[None], kv[at[0].long(), 0], sm_scale, d_v)[0] for one, at in zip(q, indices, strict=True)]
        return torch.stack(rows), "max", "logsumexp"

    module.__dict__.update(
        get_mla_metadata=get_mla_metadata, flash_mla_with_kvcache=flash_mla_with_kvcache,
        flash_mla_sparse_fwd=flash_mla_sparse_fwd)
    return module


def latent(q: Tensor, k: Tensor, scale: float, rank: int, seen: Tensor | None = None) -> Tensor:
    """q [T, H, D], k [n, D] whose first `rank` channels are the values -> [T, H, rank]."""
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, k[:, :rank], seen, scale=scale).transpose(0, 1)
