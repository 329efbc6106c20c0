"""scores[tile of rows, tile of keys] as of `estimate`, where promise(rows, box) = score(|q| |k| cos(pi d / 64))

q and k are the mean query of BOX rows and the mean key of a box, the key centred by the mean of all keys; a signature is the
signs of their products with 64 random directions, d in how many bits those of q and k differ. Two directions at angle t differ
in each bit with probability t / pi, so that pi d / 64 estimates t. A promise is worked out once: what the tiles promise each
box of rows is kept in memory until its sum over all tiles is known.

Shapes: words [B, H, X] int64, norms [B, H, X] float32, of queries and of keys, X = ceil(length / BOX); promised [programs,
BLOCK_M / BOX, CAPACITY] float32; scores [programs, CAPACITY] float32, programs = B * H * ceil(T / BLOCK_M).
Grid: that of `prefill`, and a program the same tile of rows. Work: some 50 operations for each pair of boxes.
"""

import triton
import triton.language as tl

from ..hooks import score
from .row_tiles import tile_of


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
def ones(first, second):
    """How many bits are set in two uint32."""
    first = first - ((first >> 1) & 0x55555555)
    second = second - ((second >> 1) & 0x55555555)
    fours = (first & 0x33333333) + ((first >> 2) & 0x33333333) + (second & 0x33333333) + ((second >> 2) & 0x33333333)
    eights = (fours & 0x0F0F0F0F) + ((fours >> 4) & 0x0F0F0F0F)
    return ((eights * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def cosine(differ):
    """cos(pi d / 64) of d in 0 .. 64 bits, as the sine of what is left to a right angle, to 6e-8: Taylor's series."""
    y = 1.5707963267948966 - differ.to(tl.float32) * 0.04908738521234052
    z = y * y
    series = 2.7557319223985893e-06 + z * -2.505210838544172e-08
    series = -0.0001984126984126984 + z * series
    series = 0.008333333333333333 + z * series
    return y + y * z * (-0.16666666666666666 + z * series)


@triton.jit
def rows_of(words, norms, b, h, H, T, row, lo, hi, BOX: tl.constexpr):
    """Signatures and norms of the boxes of rows, one of their rows each, and what any of them sees [M / BOX, 1]."""
    R: tl.constexpr = row.shape[0] // BOX
    boxes = tl.cdiv(T, BOX)
    x = tl.min(row) // BOX + tl.arange(0, R)                                                   # [R]
    at = (b * H + h).to(tl.int64) * boxes + tl.minimum(x, boxes - 1)
    m_row = row[:, None] < T
    lo = tl.min(tl.reshape(tl.where(m_row, lo, 2**31 - 1), [R, BOX]), 1)[:, None]
    hi = tl.max(tl.reshape(tl.where(m_row, hi, 0), [R, BOX]), 1)[:, None]
    word = tl.load(words + at, mask=x < boxes, other=0)
    norm = tl.load(norms + at, mask=x < boxes, other=0.0)
    return (word[:, None], norm[:, None]), tl.minimum(x * BOX + BOX // 2, T - 1)[:, None], lo, hi


@triton.jit
def promises(rows, x, live, lo, hi, at, keys, X, env, BOX: tl.constexpr):
    """[R, N] in units of log2, for boxes x [N] of keys; -inf where not live or where no row of the box sees any."""
    b, h, i = at
    word, norm = rows
    m_x = live & (x >= 0) & (x < X)
    differ = word ^ tl.load(keys[0] + x, mask=m_x, other=0)[None, :]                           # [R, N]
    k_norm = tl.load(keys[1] + x, mask=m_x, other=0.0)[None, :]
    s = norm * k_norm * cosine(ones(differ.to(tl.uint32), (differ >> 32).to(tl.uint32)))
    j = (x * BOX)[None, :]
    a = score(s, b, h, i, j + BOX // 2, env)
    return tl.where(m_x[None, :] & (j < hi) & (j + BOX > lo), a, float("-inf"))


@triton.jit
def tile_promises(rows, tile, start, lo, hi, at, keys, X, env, BLOCK_N: tl.constexpr, BOX: tl.constexpr):
    """[R, N] of tiles of keys [N], -inf before `start`: the sums over their boxes, one box of each tile after the other."""
    PER: tl.constexpr = BLOCK_N // BOX
    live = tile * BLOCK_N >= start
    top = tl.full([lo.shape[0], tile.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([lo.shape[0], tile.shape[0]], tl.float32)
    for n in tl.static_range(0, PER):
        a = promises(rows, tile * PER + n, live, lo, hi, at, keys, X, env, BOX)
        more = tl.maximum(top, a)
        shift = tl.where(more == float("-inf"), 0.0, more)
        total = total * tl.exp2(top - shift) + tl.exp2(a - shift)
        top = more
    return top + tl.log2(tl.where(top == float("-inf"), 1.0, total))


@triton.jit(do_not_specialize=["T", "S", "X", "CAPACITY"])
def lsh(words, norms, k_words, k_norms, promised, scores, H, T, S, X, CAPACITY,
        operands, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr,
        MEAN: tl.constexpr):
    env = operands
    R: tl.constexpr = BLOCK_M // BOX
    pid = tl.program_id(0)
    b, h, row, lo, hi, start, inner, outer, stop = tile_of(pid, H, T, S, env, BLOCK_M, BLOCK_N)
    rows, i, lo, hi = rows_of(words, norms, b, h, H, T, row, lo, hi, BOX)
    kv_head = (b * (H // GROUP) + h // GROUP).to(tl.int64) * X
    keys = (k_words + kv_head, k_norms + kv_head)
    count = tl.cdiv(tl.maximum(stop - start, 0), BLOCK_N)
    last = start // BLOCK_N + count - 1
    chunks = tl.cdiv(count, CHUNK)
    p_w = promised + (pid.to(tl.int64) * R + tl.arange(0, R))[:, None] * CAPACITY
    y = tl.full([R], float("-inf"), tl.float32)
    for n in tl.range(0, chunks, num_stages=1):
        tile = last - n * CHUNK - tl.arange(0, CHUNK)                                          # [N]
        w = tile_promises(rows, tile, start, lo, hi, (b, h, i), keys, X, env, BLOCK_N, BOX)    # [R, N]
        tl.store(p_w + tile[None, :], w, mask=(tile * BLOCK_N >= start)[None, :])
        y = both(y, log2_sum(w, 1))
    tl.debug_barrier()                                              # what one thread has kept another may need
    shift = tl.where(y == float("-inf"), 0.0, y)[:, None]
    for n in tl.range(0, chunks, num_stages=1):
        tile = last - n * CHUNK - tl.arange(0, CHUNK)
        j0 = tile * BLOCK_N
        share = tl.exp2(tl.load(p_w + tile[None, :], mask=(j0 >= start)[None, :], other=float("-inf")) - shift)
        best = tl.sum(share, 0) / R if MEAN else tl.max(share, 0)
        whole = (j0 >= tl.maximum(inner, start + BLOCK_N)) & (j0 + BLOCK_N <= outer)
        tl.store(scores + pid.to(tl.int64) * CAPACITY + tile, tl.where(whole, best, -1.0), mask=j0 >= start)
