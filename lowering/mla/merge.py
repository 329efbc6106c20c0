"""out = sum_p 2^(lse_p - LSE) parts_p,   LSE = m + log2 sum_p 2^(lse_p - m),   m = max_p lse_p

Exact: any division of the keys into parts gives the same answer. A row that no part saw is 0.
Shapes: parts [SPLITS, ROWS, R] float32; lse [SPLITS, ROWS]; ROWS = B * H * T; out [B, H, T, R], any strides.
Grid: (ROWS * ceil(R / BLOCK_R),): a row is wide, and a decode step has few; each program finds the row's weights for itself.
Traffic: SPLITS * R * 4 bytes per row.
"""

import triton
import triton.language as tl

CHUNK = tl.constexpr(16)


@triton.jit(do_not_specialize=["H", "T", "SPLITS"])
def merge(parts, lse, out, out_strides, ROWS, H, T, SPLITS, R: tl.constexpr, BLOCK_R: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) // tl.cdiv(R, BLOCK_R)
    o_r = tl.program_id(0) % tl.cdiv(R, BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    m = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_R], tl.float32)
    for p0 in tl.range(0, SPLITS, CHUNK):
        p = (p0 + tl.arange(0, CHUNK)).to(tl.int64)                                            # [CHUNK]
        b_lse = tl.load(lse + p * ROWS + row, mask=p < SPLITS, other=float("-inf"))
        p_part = parts + (p[:, None] * ROWS + row) * R + o_r[None, :]
        b_part = tl.load(p_part, mask=(p < SPLITS)[:, None] & m_r[None, :], other=0.0)         # [CHUNK, BLOCK_R]
        m_new = tl.maximum(m, tl.max(b_lse, 0))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        w = tl.exp2(b_lse - shift)
        shrink = tl.exp2(m - shift)
        acc = acc * shrink + tl.sum(w[:, None] * b_part, 0)
        total = total * shrink + tl.sum(w, 0)
        m = m_new
    b = row // (H * T)
    h = row // T % H
    p_out = out + b * out_strides[0] + h * out_strides[1] + row % T * out_strides[2] + o_r.to(tl.int64) * out_strides[3]
    tl.store(p_out, (acc / tl.where(total == 0.0, 1.0, total)).to(out.dtype.element_ty), mask=m_r)
