"""hull[b,h,i] = [first j with mask, last j with mask + 1);  class[b,h,i//64,j//64] = 0 none, 1 some, 2 all of the tile

Shapes: mask [B, H, T, S] bool, any strides; hull [B, H, T, 2] int32, (0, 0) in a row without any; classes
[B, H, ceil(T/64), ceil(S/64)] int8. Positions past the end count for neither.
Grid: (B * H * ceil(T / 64),). Traffic: each byte of the mask once. A program keeps R = min(64, T) rows and strides over
the keys W tiles at a time, so that a one-row mask is read in wide pieces too.
"""

import triton
import triton.language as tl

TILE = tl.constexpr(64)


@triton.jit(do_not_specialize=["T", "S"])
def summarize(mask, strides, hull, classes, H, T, S, R: tl.constexpr, W: tl.constexpr):
    pid = tl.program_id(0)
    rows = tl.cdiv(T, TILE)
    columns = tl.cdiv(S, TILE)
    lead = pid // rows
    row = (pid % rows * TILE + tl.arange(0, R))                                              # [R]
    p_mask = mask + (lead // H).to(tl.int64) * strides[0] + (lead % H).to(tl.int64) * strides[1]
    p_mask += row.to(tl.int64)[:, None] * strides[2]
    first = tl.full([R], 2147483647, tl.int32)
    last = tl.zeros([R], tl.int32)
    for c0 in tl.range(0, columns, W):
        j = c0 * TILE + tl.arange(0, W * TILE)                                               # [W * 64]
        inside = (row < T)[:, None] & (j < S)[None, :]
        seen = tl.load(p_mask + j.to(tl.int64)[None, :] * strides[3], mask=inside, other=0).to(tl.int32)    # [R, W * 64]
        first = tl.minimum(first, tl.min(tl.where(seen != 0, j[None, :], 2147483647), 1))
        last = tl.maximum(last, tl.max(tl.where(seen != 0, j[None, :] + 1, 0), 1))
        some = tl.max(tl.max(tl.reshape(seen, [R, W, TILE]), 2), 0)                          # [W]
        every = tl.min(tl.min(tl.reshape(tl.where(inside, seen, 1), [R, W, TILE]), 2), 0)
        c = c0 + tl.arange(0, W)
        tl.store(classes + pid.to(tl.int64) * columns + c, (some + every * some).to(tl.int8), mask=c < columns)
    p_hull = hull + (lead.to(tl.int64) * T + row) * 2
    tl.store(p_hull, tl.where(last > 0, first, 0), mask=row < T)
    tl.store(p_hull + 1, last, mask=row < T)
