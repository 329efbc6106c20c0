"""dropped[b,h,i] = sum_{j in a tile whose p.v was not computed} exp(a_j) / (sum_j exp(a_j) + exp(sink))

What a kernel that keeps an account (`counted`) left out, measured after it: q.k of everything that is visible. kept[item, tile]
becomes 1 where a tile has a weight and nothing of it was computed, 0 where it has none; ALL: 3 wherever it has one.

Shapes: q [B, H, T, D]; k [B, H / GROUP, S, D], any strides; kept [B * H / GROUP * ceil(GROUP * T / BLOCK_M), COLUMNS] uint8;
dropped [B, H, T] float32. Grid: the items. Where no rows were packed GROUP is 1; KV_GROUP heads have one KV head.
"""

import triton
import triton.language as tl

from ..hooks import HAS_RESIDUE, HAS_SINK, residue, score, sink
from ..packed import load_packed
from ..rows import load_rows
from ..scan import dot, hull, tile_range


@triton.jit
def add(total, gone, m, a, left_out):
    """total, gone and m [M] with the tile of logits a [M, N]: sums of 2^(a - m), of all and of what was left out."""
    m_new = tl.maximum(m, tl.max(a, 1))
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    shrink = tl.exp2(m - shift)
    more = tl.sum(tl.exp2(a - shift[:, None]), 1)
    return total * shrink + more, gone * shrink + tl.where(left_out, more, 0.0), m_new


@triton.jit(do_not_specialize=["T", "S", "ALIGN", "COLUMNS"])
def mass(q, q_strides, k, k_strides, kept, dropped, H, T, S, ALIGN, COLUMNS,
         operands, D: tl.constexpr, GROUP: tl.constexpr, KV_GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
         BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ALL: tl.constexpr, UPCAST: tl.constexpr):
    env = operands
    item = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(GROUP * T, BLOCK_M)
    b64 = item // (tiles * (H // GROUP))
    b = b64.to(tl.int32)
    x = (item % (tiles * (H // GROUP))).to(tl.int32)
    row = (x % tiles * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    r = tl.minimum(row, GROUP * T - 1)
    h = x // tiles * GROUP + r // T                                                            # [M, 1]
    i = r % T
    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    b_q = load_packed(q, q_strides, b64, h, i, D, BLOCK_D)                                     # [M, D]
    p_k = k + b64 * k_strides[0] + (tl.min(h) // KV_GROUP).to(tl.int64) * k_strides[1]
    total = tl.zeros([BLOCK_M], tl.float32)
    gone = tl.zeros([BLOCK_M], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for j0 in tl.range(begin // ALIGN * ALIGN, end, BLOCK_N, num_stages=1):
        j = j0 + tl.arange(0, BLOCK_N)                                                         # [N]
        visible = (j[None, :] >= lo) & (j[None, :] < hi)
        if HAS_RESIDUE:
            visible = visible & residue(b, h, i, j[None, :], env)
        b_k = load_rows(p_k, k_strides[2], k_strides[3], j, begin, end, D, BLOCK_D, True)      # [N, D]
        s = dot(b_q, tl.trans(b_k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32), UPCAST)          # [M, N]
        a = tl.where(visible, score(s, b, h, i, j[None, :], env), float("-inf"))
        seen = tl.max((a != float("-inf")).to(tl.int32))
        p_kept = kept + item * COLUMNS + j0 // BLOCK_N
        step = tl.maximum(tl.load(p_kept).to(tl.int32), 1)
        if ALL:
            step = 3
        tl.store(p_kept, (step * seen).to(tl.uint8))
        total, gone, m = add(total, gone, m, a, step < 3)
    if HAS_SINK:
        a = sink(b, h, i, env) + tl.zeros([BLOCK_M, 1], tl.float32)
        total, gone, m = add(total, gone, m, a, False)
    share = gone / tl.where(total == 0.0, 1.0, total)
    p_out = dropped + (b64 * H + h) * T + i                                                    # [M, 1]
    tl.store(p_out, share[:, None], mask=row < GROUP * T)
