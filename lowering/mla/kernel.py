"""out[b,h,i,:] = sum_j e^a_j latent[b,j] / sum_j e^a_j   a_j = score(q_latent[b,h,i].latent[b,j] + q_rope[b,h,i].rope[b,j])

Shapes: q_latent [B, H, T, R]; q_rope [B, H, T, P]; latent [B, S, R]; rope [B, S, P]; any strides. With pages [B, S / 64]:
latent [PAGES, 64, R], rope [PAGES, 64, P]. Row r = h * T + i: one latent serves all heads (multi-query attention). With FP8
latent is e4m3 codes, uint8, and scales [.., R / 128] float32 are theirs; both and rope lie in rows of whole 16 bytes.
Grid: (SPLITS * ceil(H * T / BLOCK_M) * B,), fixed by shapes. Each program divides the live hull of its rows into SPLITS parts
of whole tiles and takes one: the work is balanced at any length, with nothing read on the host. The row tiles of one part
are neighbours, so that all but one find its latents in the second-level cache.
Out, if SPLITS == 1: out [B, H, T, R]. Else parts [SPLITS, B, H, T, R] float32, each normalised, and lse [SPLITS, B, H, T]
in units of log2, -inf where the part saw no key; `merge` joins them. The sink joins part 0.
Traffic: (R + P) * itemsize bytes per key of the hull, (R + P) * itemsize per row, 8 * R per row and part if SPLITS > 1.
FLOPs: 2 (2 R + P) per visible (row, j): with 128 heads in 16 bits 240 a byte, as many as an H100 has.
"""

import triton
import triton.language as tl

from ..hooks import HAS_LO, HAS_RESIDUE, HAS_SINK, residue, sink
from ..packed import load_packed
from ..scan import hull, join_sink, nothing, tile_range
from .tile import GROUP, dequantize, load_tile, place, store_rows, visit


@triton.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def mla(q_latent, q_latent_strides, q_rope, q_rope_strides, latent, latent_strides, rope, rope_strides, pages,
        pages_strides, scales, scales_strides, out, out_strides, lse, B, H, T, S, SPLITS,
        operands, R: tl.constexpr, P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
        BLOCK_P: tl.constexpr, STAGES: tl.constexpr, IN_PAGES: tl.constexpr, IN_PARTS: tl.constexpr,
        UPCAST: tl.constexpr, FP8: tl.constexpr):
    env = operands
    tiles = tl.cdiv(H * T, BLOCK_M)
    pid = tl.program_id(0)
    part = pid // tiles % SPLITS
    b = pid // tiles // SPLITS
    b64 = b.to(tl.int64)
    row = (pid % tiles * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]                             # [M, 1]
    r = tl.minimum(row, H * T - 1)                                  # rows past the end repeat the last one, unstored
    h = r // T
    i = r % T
    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    aligned = begin // BLOCK_N * BLOCK_N                            # so that a tile of keys lies in one page
    each = tl.cdiv(tl.cdiv(tl.maximum(end - aligned, 0), BLOCK_N), SPLITS) * BLOCK_N
    first = aligned + part * each
    last = tl.minimum(end, first + each)
    b_q = load_packed(q_latent, q_latent_strides, b64, h, i, R, BLOCK_R)                       # [M, R]
    b_r = load_packed(q_rope, q_rope_strides, b64, h, i, P, BLOCK_P)                           # [M, P]
    acc, m, l = nothing(BLOCK_M, BLOCK_R)
    for j0 in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        j = j0 + tl.arange(0, BLOCK_N)                                                         # [N]
        visible = j[None, :] < hi
        if HAS_LO:
            visible = visible & (j[None, :] >= lo)
        if HAS_RESIDUE:
            visible = visible & residue(b, h, i, j[None, :], env)
        m_key = j < last
        if HAS_LO:
            m_key = m_key & (j >= begin)
        block, at = place(pages, pages_strides, b, b * 0 + j0, IN_PAGES)
        b_latent = load_tile(latent, latent_strides, block, at, m_key, BLOCK_N, R, BLOCK_R, 1)
        b_rope = load_tile(rope, rope_strides, block, at, m_key, BLOCK_N, P, BLOCK_P, 8 if FP8 else 1)
        if FP8:
            b_scale = load_tile(scales, scales_strides, block, at, m_key, BLOCK_N, R // GROUP, BLOCK_R // GROUP, 4)
            b_latent = dequantize(b_latent, b_scale, b_q.dtype, FP8)
        acc, m, l = visit(acc, m, l, b_q, b_r, b_latent, b_rope, visible, j, (b, h, i), env, UPCAST)
    if HAS_SINK:
        a = sink(b, h, i, env) + tl.zeros([BLOCK_M, 1], tl.float32)
        acc, m, l = join_sink(acc, m, l, tl.where(part == 0, a, float("-inf")))
    store_rows(out, out_strides, lse, acc, m, l, part, B, H, T, b64, h, i, row < H * T, R, IN_PARTS)
