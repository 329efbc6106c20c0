"""promise(i, box) = score(q_i . centre + ALPHA |q_i| . half)        ALPHA = 1 bounds it from above, 1/2 comes near it"""

import triton
import triton.language as tl

from ..hooks import score
from ..rows import load_rows
from ..scan import dot, hull, samples, segments, tile_range

ALPHA = tl.constexpr(0.5)


@triton.jit
def queries_and_boxes(q, q_strides, centre, half, b, h, row, H, T, X, D: tl.constexpr, GROUP: tl.constexpr,
                      BLOCK_D: tl.constexpr):
    """q [M, D] and ALPHA |q| of rows [M]; the boxes of their KV head; (b, h, i)."""
    p_q = q + b.to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    b_q = load_rows(p_q, q_strides[2], q_strides[3], tl.minimum(row, T - 1), 0, T, D, BLOCK_D, False)    # [M, D]
    b_a = (tl.abs(b_q.to(tl.float32)) * ALPHA).to(b_q.dtype)
    kv_head = (b * (H // GROUP) + h // GROUP).to(tl.int64) * X * D
    return b_q, b_a, (centre + kv_head, half + kv_head), (b, h, tl.minimum(row, T - 1)[:, None])


@triton.jit
def tile_of(pid, H, T, S, env, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile of rows of a program, as `prefill` has them: b, h, row [M]; hull lo, hi [M, 1]; `segments` of its keys."""
    tiles = tl.cdiv(T, BLOCK_M)
    h = pid // tiles % H
    b = pid // tiles // H
    row = (tiles - 1 - pid % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)                          # [M]
    i = tl.minimum(row, T - 1)[:, None]
    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    first = begin // BLOCK_N * BLOCK_N
    start, inner, outer, stop = segments(first, end, lo, hi, S, (b, h, samples(i, BLOCK_M)), env, BLOCK_N)
    return b, h, row, lo, hi, start, inner, outer, stop


@triton.jit
def log2_sum(a, axis: tl.constexpr):
    """log2 of the sum of 2^a along an axis; -inf of nothing but -inf."""
    top = tl.max(a, axis)
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(a - tl.expand_dims(shift, axis)), axis)
    return top + tl.log2(tl.where(top == float("-inf"), 1.0, total))


@triton.jit
def both(y, more):
    """log2(2^y + 2^more) [M]."""
    return log2_sum(tl.join(y, more), 1)


@triton.jit
def promises(b_q, b_a, x, live, lo, hi, at, keys, X, env, D: tl.constexpr, BOX: tl.constexpr, UPCAST: tl.constexpr):
    """[M, N] in units of log2 for boxes x [N]; -inf where not live [N] or where the row sees nothing of the box."""
    b, h, i = at
    centre, half = keys
    b_c = load_rows(centre, D, 1, x, 0, X, D, b_q.shape[1], True)                              # [N, D]
    b_h = load_rows(half, D, 1, x, 0, X, D, b_q.shape[1], True)
    s = dot(b_q, tl.trans(b_c), tl.zeros([b_q.shape[0], x.shape[0]], tl.float32), UPCAST)
    s = dot(b_a, tl.trans(b_h), s, UPCAST)                                                     # [M, N]
    j = (x * BOX)[None, :]
    a = score(s, b, h, i, j + BOX // 2, env)
    return tl.where(live[None, :] & (j < hi) & (j + BOX > lo), a, float("-inf"))
