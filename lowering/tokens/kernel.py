"""out[b,h,i,:] = sum_t e^a_j latent[b,j] / sum_t e^a_j    j = tokens[b,i,t]: only the keys a query has chosen

DeepSeek sparse attention (DeepSeek-V3.2, 2025). a_j as in `mla/kernel.py`; a token outside [0, S), or the spec's hull or
residue, is no key. No key comes twice in a row of tokens.
Shapes: q_latent [B, H, T, R]; q_rope [B, H, T, P]; latent [B, S, R]; rope [B, S, P]; tokens [B, T, K]; any strides. With pages
[B, S / 64]: latent [PAGES, 64, R], rope [PAGES, 64, P]. FP8 as in `mla`. The rows of a tile are BLOCK_M heads of one query.
Grid: (SPLITS * ceil(H / BLOCK_M) * T * B,), fixed by shapes; each program takes K / SPLITS tokens in whole tiles. The row tiles
of one query are neighbours, so that all but one find its latents in the second-level cache.
Out: as `mla`; the sink joins part 0.
Traffic: (R + P) * itemsize + itemsize of tokens, per query and token; FLOPs: 2 (2 R + P) H per query and token.
"""

import triton
import triton.language as tl

from ..hooks import HAS_RESIDUE, HAS_SINK, residue, sink
from ..mla.tile import GROUP, dequantize, load_keys, place, store_rows, visit
from ..packed import load_packed
from ..scan import hull, join_sink, nothing, tile_range


@triton.jit(do_not_specialize=["B", "H", "T", "S", "K", "SPLITS"])
def tokens(q_latent, q_latent_strides, q_rope, q_rope_strides, latent, latent_strides, rope, rope_strides, chosen,
           chosen_strides, pages, pages_strides, scales, scales_strides, out, out_strides, lse, B, H, T, S, K, SPLITS,
           operands, R: tl.constexpr, P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
           BLOCK_P: tl.constexpr, STAGES: tl.constexpr, IN_PAGES: tl.constexpr, IN_PARTS: tl.constexpr,
           UPCAST: tl.constexpr, FP8: tl.constexpr):
    env = operands
    tiles = tl.cdiv(H, BLOCK_M)
    pid = tl.program_id(0)
    part = pid // tiles % SPLITS
    query = pid // tiles // SPLITS
    b = query // T
    b64 = b.to(tl.int64)
    row = (pid % tiles * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]                             # [M, 1]
    h = tl.minimum(row, H - 1)                                      # rows past the end repeat the last one, unstored
    i = h * 0 + query % T
    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    each = tl.cdiv(tl.cdiv(K, BLOCK_N), SPLITS) * BLOCK_N
    first = part * each
    last = tl.minimum(K, first + each)
    p_tokens = chosen + b64 * chosen_strides[0] + (query % T).to(tl.int64) * chosen_strides[1]
    b_q = load_packed(q_latent, q_latent_strides, b64, h, i, R, BLOCK_R)                       # [M, R]
    b_r = load_packed(q_rope, q_rope_strides, b64, h, i, P, BLOCK_P)                           # [M, P]
    acc, m, l = nothing(BLOCK_M, BLOCK_R)
    for t0 in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        t = t0 + tl.arange(0, BLOCK_N)                                                         # [N]
        token = tl.load(p_tokens + t.to(tl.int64) * chosen_strides[2], mask=t < last, other=-1)
        m_key = (token >= begin) & (token < end)                                               # [N]
        j = tl.where(m_key, token, 0).to(tl.int32)                                             # [N]
        visible = m_key[None, :] & (j[None, :] >= lo) & (j[None, :] < hi)
        if HAS_RESIDUE:
            visible = visible & residue(b, h, i, j[None, :], env)
        block, at = place(pages, pages_strides, b, j, IN_PAGES)
        b_latent = load_keys(latent, latent_strides, block, at, m_key, R, BLOCK_R, 1)
        b_rope = load_keys(rope, rope_strides, block, at, m_key, P, BLOCK_P, 8 if FP8 else 1)
        if FP8:
            b_scale = load_keys(scales, scales_strides, block, at, m_key, R // GROUP, BLOCK_R // GROUP, 4)
            b_latent = dequantize(b_latent, b_scale, b_q.dtype, FP8)
        acc, m, l = visit(acc, m, l, b_q, b_r, b_latent, b_rope, visible, j, (b, h, i), env, UPCAST)
    if HAS_SINK:
        a = sink(b, h, i, env) + tl.zeros([BLOCK_M, 1], tl.float32)
        acc, m, l = join_sink(acc, m, l, tl.where(part == 0, a, float("-inf")))
    store_rows(out, out_strides, lse, acc, m, l, part, B, H, T, b64, h, i, row < H, R, IN_PARTS)
