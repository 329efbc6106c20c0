"""out = sum_p 2^(lse_p - LSE) parts_p,   LSE = m + log2 sum_p 2^(lse_p - m),   m = max_p lse_p

Exact: any division of the keys into parts gives the same answer. A row that no part saw is 0.
Shapes: parts [SPLITS, ROWS, DV] float32; lse [SPLITS, ROWS]; ROWS = B * H * T; out [B, H, T, DV], any strides.
Grid: (ROWS,). Traffic: SPLITS * DV * 4 bytes per row.
"""

import triton
import triton.language as tl

CHUNK = tl.constexpr(8)


@triton.jit(do_not_specialize=["T", "SPLITS"])
def merge(parts, lse, out, out_strides, ROWS, H, T, SPLITS, DV: tl.constexpr, BLOCK_DV: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_DV)
    m_d = o_d < DV
    m = float("-inf")
    for p0 in tl.range(0, SPLITS, CHUNK):
        p = p0 + tl.arange(0, CHUNK)
        m = tl.maximum(m, tl.max(tl.load(lse + p.to(tl.int64) * ROWS + row, mask=p < SPLITS, other=float("-inf"))))
    shift = tl.where(m == float("-inf"), 0.0, m)
    acc = tl.zeros([BLOCK_DV], tl.float32)
    total = 0.0
    for p0 in tl.range(0, SPLITS, CHUNK):
        p = (p0 + tl.arange(0, CHUNK)).to(tl.int64)                                          # [CHUNK]
        w = tl.exp2(tl.load(lse + p * ROWS + row, mask=p < SPLITS, other=float("-inf")) - shift)
        p_part = parts + (p[:, None] * ROWS + row) * DV + o_d[None, :]
        b_part = tl.load(p_part, mask=(p < SPLITS)[:, None] & m_d[None, :], other=0.0)       # [CHUNK, DV]
        acc += tl.sum(w[:, None] * b_part, 0)
        total += tl.sum(w)
    b = row // (H * T)
    h = row // T % H
    p_out = out + b * out_strides[0] + h * out_strides[1] + row % T * out_strides[2] + o_d.to(tl.int64) * out_strides[3]
    tl.store(p_out, (acc / tl.where(total == 0.0, 1.0, total)).to(out.dtype.element_ty), mask=m_d)
