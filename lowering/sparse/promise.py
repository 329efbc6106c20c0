"""scores[tile of rows, tile of keys] = the greatest share of a row that the tile promises, of what has been met by then

Tiles are met inward: the first, where a softmax keeps its sink, then CHUNK tiles at a time from the last backwards. A row's sum
is that of the promises met, the chunk's included. Only tiles that every row sees wholly, and not the first, have a score:
the others are always attended, and keep the -1 they have.

Shapes: q [B, H, T, D], any strides; boxes [B, H / GROUP, X, 2, D] contiguous; scores [B * H * ceil(T / BLOCK_M), CAPACITY]
float32. Grid: that of `prefill`, and a program the same tile of rows. FLOPs: 4 D / BOX per visible (i, j): 2 / BOX of q.k.
Traffic: 4 D / BOX bytes a visible key and tile of rows, in 16 bits, from the second-level cache.
"""

import triton
import triton.language as tl

from .promises import load_boxes, numbers_of, queries, turns, weigh
from .row_tiles import tile_of


@triton.jit(do_not_specialize=["T", "S", "X", "CAPACITY"])
def promise(q, q_strides, boxes, scores, H, T, S, X, CAPACITY,
            operands, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_D: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr):
    env = operands
    pid = tl.program_id(0)
    b, h, row, lo, hi, start, inner, outer, stop = tile_of(pid, H, T, S, env, BLOCK_M, BLOCK_N)
    at = (b, h, tl.minimum(row, T - 1)[:, None])
    b_q = queries(q + b.to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1], q_strides, row, T, D, BLOCK_D)
    p_box = boxes + (b * (H // GROUP) + h // GROUP).to(tl.int64) * X * (2 * D)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    second = start + BLOCK_N
    last = start + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_N) * BLOCK_N
    STEP: tl.constexpr = CHUNK * BLOCK_N
    first = start
    whole = tl.maximum(inner, second)
    before, within, count = turns(last, whole, outer, second, STEP)
    for region in tl.static_range(3):
        for n in tl.range((-1, before, within)[region], (before, within, count)[region], num_stages=1):
            j1 = tl.where(n < 0, second, last - n * STEP)                                      # the first tile alone
            x = numbers_of(j1, BLOCK_N, BOX, CHUNK)
            b_x = load_boxes(p_box, x, X, D, BLOCK_D)
            part, top, total = weigh(b_q, b_x, x, first, lo, hi, at, top, total, env, BLOCK_N, BOX, region != 1, UPCAST)
            first = second
            most = tl.max(part * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], 0)       # [CHUNK]
            j0 = j1 - (tl.arange(0, CHUNK) + 1) * BLOCK_N
            p_score = scores + pid.to(tl.int64) * CAPACITY + j0 // BLOCK_N
            tl.store(p_score, most, mask=(j0 >= whole) & (j0 + BLOCK_N <= outer))
