"""scores[tile of rows, tile of keys] = what the tile promises of the rows' softmax: the mean row's share, or the greatest

    share(i, tile) = exp(promise(i, tile)) / sum_tiles exp(promise(i, tile))        promise: as of `promises.py`

Two passes over the promises: the first sums them. Only tiles that every row sees wholly, and not the first, have a score: the
others are always attended, and have -1.

Shapes: q [B, H, T, D], any strides; centre, half [B, H / GROUP, X, D] contiguous; scores [B * H * ceil(T / BLOCK_M), CAPACITY]
float32. Grid: that of `prefill`, and a program the same tile of rows. FLOPs: 8 D / BOX per visible (i, j): 4 / BOX of q.k.
"""

import triton
import triton.language as tl

from .promises import both, log2_sum, promises, queries_and_boxes, tile_of


@triton.jit
def tile_promises(b_q, b_a, lo, hi, last, start, at, keys, X, env, D: tl.constexpr, BLOCK_N: tl.constexpr, BOX: tl.constexpr,
                  CHUNK: tl.constexpr, UPCAST: tl.constexpr):
    """[M, CHUNK] of the tiles from `last` backwards, -inf before `start`."""
    PER: tl.constexpr = BLOCK_N // BOX
    o_n = tl.arange(0, CHUNK * PER)
    x = (last - (o_n // PER + 1) * BLOCK_N) // BOX + o_n % PER
    a = promises(b_q, b_a, x, x * BOX >= start, lo, hi, at, keys, X, env, D, BOX, UPCAST)
    return log2_sum(tl.reshape(a, [a.shape[0], CHUNK, PER]), 2)


@triton.jit(do_not_specialize=["T", "S", "X", "CAPACITY"])
def estimate(q, q_strides, centre, half, scores, H, T, S, X, CAPACITY,
             operands, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_D: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr, MEAN: tl.constexpr, UPCAST: tl.constexpr):
    env = operands
    pid = tl.program_id(0)
    b, h, row, lo, hi, start, inner, outer, stop = tile_of(pid, H, T, S, env, BLOCK_M, BLOCK_N)
    b_q, b_a, keys, at = queries_and_boxes(q, q_strides, centre, half, b, h, row, H, T, X, D, GROUP, BLOCK_D)
    top = start + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_N) * BLOCK_N
    chunks = tl.cdiv(tl.maximum(top - start, 0), CHUNK * BLOCK_N)
    y = tl.full([lo.shape[0]], float("-inf"), tl.float32)
    for n in tl.range(0, chunks, num_stages=1):
        w = tile_promises(b_q, b_a, lo, hi, top - n * CHUNK * BLOCK_N, start, at, keys, X, env, D, BLOCK_N, BOX, CHUNK, UPCAST)
        y = both(y, log2_sum(w, 1))
    shift = tl.where(y == float("-inf"), 0.0, y)
    for n in tl.range(0, chunks, num_stages=1):
        last = top - n * CHUNK * BLOCK_N
        w = tile_promises(b_q, b_a, lo, hi, last, start, at, keys, X, env, D, BLOCK_N, BOX, CHUNK, UPCAST)
        share = tl.exp2(w - shift[:, None])                                                    # [M, CHUNK]
        score = tl.sum(share, 0) / share.shape[0] if MEAN else tl.max(share, 0)
        j0 = last - (tl.arange(0, CHUNK) + 1) * BLOCK_N
        whole = (j0 >= tl.maximum(inner, start + BLOCK_N)) & (j0 + BLOCK_N <= outer)
        tl.store(scores + pid.to(tl.int64) * CAPACITY + j0 // BLOCK_N, tl.where(whole, score, -1.0), mask=j0 >= start)
