"""listed[tile of rows] = the tiles of keys that may hold `share` of some row's softmax, by the boxes of their keys

Tiles are met inward: the first, where a softmax keeps its sink, then CHUNK tiles at a time from the last backwards.
Per row, y = log2 of the sum of the promises met, those of the chunk included; a tile stays if in one row its own promises
reach y + limit, limit = log2 share. Only tiles that every row sees wholly are listed: those at the edges are always attended.

Shapes: q [B, H, T, D], any strides; centre, half [B, H / GROUP, X, D] contiguous; listed [B * H * ceil(T / BLOCK_M), CAPACITY],
the numbers of the tiles in the order met; counts [B * H * ceil(T / BLOCK_M)] int32.
Grid: that of `prefill`, and a program the same tile of rows. FLOPs: 4 D / BOX per visible (i, j): 2 / BOX of q.k.
"""

import triton
import triton.language as tl

from .promises import both, log2_sum, promises, queries_and_boxes, tile_of


@triton.jit(do_not_specialize=["T", "S", "X", "CAPACITY"])
def promise(q, q_strides, centre, half, listed, counts, share, H, T, S, X, CAPACITY,
            operands, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_D: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr):
    env = operands
    PER: tl.constexpr = BLOCK_N // BOX
    pid = tl.program_id(0)
    b, h, row, lo, hi, start, inner, outer, stop = tile_of(pid, H, T, S, env, BLOCK_M, BLOCK_N)
    b_q, b_a, keys, at = queries_and_boxes(q, q_strides, centre, half, b, h, row, H, T, X, D, GROUP, BLOCK_D)

    o_n = tl.arange(0, CHUNK * PER)                                                            # boxes, tiles from the last
    o_t = tl.arange(0, CHUNK)
    x = start // BOX + o_n
    y = log2_sum(promises(b_q, b_a, x, o_n < PER, lo, hi, at, keys, X, env, D, BOX, UPCAST), 1)           # [M]
    second = start + BLOCK_N
    top = start + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_N) * BLOCK_N
    n = 0
    for top_c in tl.range(0, tl.cdiv(tl.maximum(top - second, 0), CHUNK * BLOCK_N), num_stages=1):
        last = top - top_c * CHUNK * BLOCK_N
        x = (last - (o_n // PER + 1) * BLOCK_N) // BOX + o_n % PER
        a = promises(b_q, b_a, x, x * BOX >= second, lo, hi, at, keys, X, env, D, BOX, UPCAST)           # [M, CHUNK * PER]
        w = log2_sum(tl.reshape(a, [BLOCK_M, CHUNK, PER]), 2)                                  # [M, CHUNK]
        y = both(y, log2_sum(w, 1))
        j0 = last - (o_t + 1) * BLOCK_N
        stays = tl.max((w >= (y + tl.log2(share))[:, None]).to(tl.int32), 0)                   # [CHUNK]
        stays = tl.where((j0 >= tl.maximum(inner, second)) & (j0 + BLOCK_N <= outer), stays, 0)
        place = pid.to(tl.int64) * CAPACITY + n + tl.cumsum(stays) - stays
        tl.store(listed + place, (j0 // BLOCK_N).to(listed.dtype.element_ty), mask=stays > 0)
        n += tl.sum(stays)
    tl.store(counts + pid, n)
