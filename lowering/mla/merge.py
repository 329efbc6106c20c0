"""out = sum_p 2^(lse_p - LSE) parts_p,   LSE = m + log2 sum_p 2^(lse_p - m),   m = max_p lse_p

Exact: any division of the keys into parts gives the same answer. A row that no part saw is 0.
Shapes: parts [.., R], lse [..]; out [B, H, T, R], any strides. With tops [.., 2] a part is what `parts` holds times the top
of its half of BLOCK_R columns (`finish.py`). Row `row` of part p is at p * ROWS + row, in the order of B, H, T, all SPLITS of
them. Of the exchange kernels (BLOCK_H > 0) ROWS = 64 * lanes, and rows are numbered in boxes (`rows.py`): part p of an item
has slot item * SPLITS + p, or with cuts [items] (2^32 first + count) slot first + p, and an item of one part is in `out`
already.
Grid: (items * COUNT / BLOCK_M,), COUNT rows of each item. Traffic: parts * R * itemsize bytes per row; all parts of a row at
once up to BLOCK_P, so that they come at the price of one. With EARLY it starts before the kernel that writes the parts has
ended, and waits for that.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait


@triton.jit
def place(row, item, H, T, ROWS, BLOCK_H: tl.constexpr, CHOSEN: tl.constexpr):
    """b, h, i of rows [M] of an item, and which there are."""
    if BLOCK_H == 0:
        return row // (H * T), row // T % H, row % T, row < ROWS
    else:
        lane = row // 64
        r = row % 64
        if CHOSEN:
            h = lane * BLOCK_H + r
            return item // T + row * 0, h, item % T + row * 0, h < H
        else:
            heads = tl.cdiv(H, BLOCK_H)
            h = lane % heads * BLOCK_H + r % BLOCK_H
            i = lane // heads * (64 // BLOCK_H) + r // BLOCK_H
            return item + row * 0, h, i, (h < H) & (i < T)


@triton.jit(do_not_specialize=["ROWS", "COUNT", "H", "T", "SPLITS"])
def merge(parts, tops, lse, cuts, out, out_strides, ROWS, COUNT, H, T, SPLITS, R: tl.constexpr, BLOCK_R: tl.constexpr,
          BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, CHOSEN: tl.constexpr, EARLY: tl.constexpr):
    blocks = tl.cdiv(COUNT, BLOCK_M)
    item = tl.program_id(0) // blocks
    row = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)                          # [M]
    b, h, i, m_row = place(row, item, H, T, ROWS, BLOCK_H, CHOSEN)
    o_r = tl.arange(0, BLOCK_R)
    m_r = o_r < R
    if EARLY:
        gdc_wait()
    first = item * SPLITS
    count = SPLITS
    if cuts is not None:
        cut = tl.load(cuts + item)
        first = (cut >> 32).to(tl.int32)
        count = cut.to(tl.int32)
        if count == 1:
            return
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for p0 in range(0, count, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)                                                         # [P]
        at = (first + p).to(tl.int64)[:, None] * ROWS + row[None, :]                           # [P, M]
        m_p = (p < count)[:, None] & m_row[None, :]
        b_lse = tl.load(lse + at, mask=m_p, other=float("-inf"))
        p_part = parts + at[:, :, None] * R + o_r[None, None, :]
        b_part = tl.load(p_part, mask=m_p[:, :, None] & m_r[None, None, :], other=0.0)         # [P, M, BLOCK_R]
        m_new = tl.maximum(m, tl.max(b_lse, 0))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        w = tl.exp2(b_lse - shift[None, :])                                                    # [P, M]
        shrink = tl.exp2(m - shift)
        scale = w[:, :, None]
        if tops is not None:
            left = tl.load(tops + at * 2, mask=m_p, other=0.0)                                 # [P, M]
            right = tl.load(tops + at * 2 + 1, mask=m_p, other=0.0)
            scale = tl.where((o_r < BLOCK_R // 2)[None, None, :], (w * left)[:, :, None], (w * right)[:, :, None])
        acc = acc * shrink[:, None] + tl.sum(scale * b_part, 0)
        total = total * shrink + tl.sum(w, 0)
        m = m_new
    p_out = out + b.to(tl.int64) * out_strides[0] + h.to(tl.int64) * out_strides[1] + i.to(tl.int64) * out_strides[2]
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]                                      # [M, BLOCK_R]
    p_o = p_out[:, None] + o_r.to(tl.int64)[None, :] * out_strides[3]
    tl.store(p_o, o.to(out.dtype.element_ty), mask=m_row[:, None] & m_r[None, :])
