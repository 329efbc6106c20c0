"""out = sum_p 2^(lse_p - LSE) parts_p,   LSE = m + log2 sum_p 2^(lse_p - m),   m = max_p lse_p

Exact: any division of the keys into parts gives the same answer. A row that no part saw is 0.
Shapes: parts [.., R], lse [..]; out [B, H, T, R], any strides. Row `row` of part p is at p * ROWS + row, in the order of B,
H, T, all SPLITS of them. Of the exchange kernels (BLOCK_H > 0) ROWS are those of all boxes of an item, numbered in boxes
(`rows.py`): part p of an item has slot item * SPLITS + p, or with cuts [items] (2^32 first + count) slot first + p, and an item
of one part is in `out` already.
Grid: (items * COUNT,), a row each, COUNT of each item. All threads lie along the row, 16 bytes each, so that parts are added
within a thread, and BLOCK_P parts are on their way at once, or FEW, where an item has no more: what is masked costs its
instructions still. Traffic: parts * R * itemsize bytes per row. With EARLY it starts before the kernel that writes the parts
has ended, and waits for that.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FEW = tl.constexpr(4)


@triton.jit
def place(row, item, H, T, BLOCK_H: tl.constexpr, CHOSEN: tl.constexpr):
    """b, h, i of a row of an item."""
    if BLOCK_H == 0:
        return row // (H * T), row // T % H, row % T
    else:
        lane = row // 64
        r = row % 64
        if CHOSEN:
            return item // T, lane * BLOCK_H + r, item % T
        else:
            heads = tl.cdiv(H, BLOCK_H)
            return item, lane % heads * BLOCK_H + r % BLOCK_H, lane // heads * (64 // BLOCK_H) + r // BLOCK_H


@triton.jit
def add(acc, m, total, parts, lse, at, left, ROWS, R: tl.constexpr, P: tl.constexpr):
    """acc [BLOCK_R], m and total after up to P parts, `left` of them, the first at row `at`; sums are relative to 2^m."""
    o_r = tl.arange(0, acc.shape[0])
    b_lse = ()
    b_parts = ()
    for p in tl.static_range(P):                                    # asked for before one is used: no compiler moves loads up
        b_part = tl.load(parts + (at + p * ROWS) * R + o_r, mask=(p < left) & (o_r < R), other=0.0)
        b_parts = b_parts + (b_part,)  # type: ignore[assignment]  # noqa: RUF005 (a kernel has no *)
    for p in tl.static_range(P):
        lse_p = tl.load(lse + at + p * ROWS, mask=p < left, other=float("-inf"))
        b_lse = b_lse + (lse_p,)  # type: ignore[assignment]  # noqa: RUF005
    m_new = m
    for p in tl.static_range(P):
        m_new = tl.maximum(m_new, b_lse[p])
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    shrink = tl.exp2(m - shift)
    acc *= shrink
    total *= shrink
    for p in tl.static_range(P):
        weight = tl.exp2(b_lse[p] - shift)
        acc += weight * b_parts[p].to(tl.float32)
        total += weight
    return acc, m_new, total


@triton.jit(do_not_specialize=["ROWS", "COUNT", "H", "T", "SPLITS"])
def merge(parts, lse, cuts, out, out_strides, ROWS, COUNT, H, T, SPLITS, R: tl.constexpr, BLOCK_R: tl.constexpr,
          BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, CHOSEN: tl.constexpr, EARLY: tl.constexpr):
    item = tl.program_id(0) // COUNT
    row = tl.program_id(0) % COUNT
    b, h, i = place(row, item, H, T, BLOCK_H, CHOSEN)
    if EARLY:
        gdc_launch_dependents()                                     # so may the kernel after this, which waits for it as well
        gdc_wait()
    first = item * SPLITS
    count = SPLITS
    if cuts is not None:
        cut = tl.load(cuts + item)
        first = (cut >> 32).to(tl.int32)
        count = cut.to(tl.int32)
        if count == 1:
            return
    if (h < H) & (i < T):
        m = tl.full([], float("-inf"), tl.float32)
        total = tl.full([], 0.0, tl.float32)
        acc = tl.zeros([BLOCK_R], tl.float32)
        at = first.to(tl.int64) * ROWS + row
        if count <= FEW:
            acc, m, total = add(acc, m, total, parts, lse, at, count, ROWS, R, FEW)
        else:
            for p in range(0, count, BLOCK_P):
                acc, m, total = add(acc, m, total, parts, lse, at + p * ROWS, count - p, ROWS, R, BLOCK_P)
        o_r = tl.arange(0, BLOCK_R)
        p_out = out + b.to(tl.int64) * out_strides[0] + h.to(tl.int64) * out_strides[1] + i.to(tl.int64) * out_strides[2]
        o = acc / tl.where(total == 0.0, 1.0, total)                                           # [BLOCK_R]
        tl.store(p_out + o_r.to(tl.int64) * out_strides[3], o.to(out.dtype.element_ty), mask=o_r < R)
