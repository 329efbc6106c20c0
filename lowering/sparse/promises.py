"""promise(i, box) = score(q_i . centre + ALPHA |q_i| . half)        ALPHA = 1 bounds it from above, 1/2 comes near it

One product of twice the columns, [q_i ; |q_i|] . [centre ; ALPHA half], whose right side `boxes` has written. A promise is an
estimate, so its sum is rounded as any q.k is. What a row is promised by a tile is the sum of 2^promise over the tile's boxes,
relative to the greatest promise that the row has met: a tile 2^126 below that promises it nothing.
"""

import triton
import triton.language as tl

from ..hooks import score
from ..scan import dot


@triton.jit
def columns(N: tl.constexpr, PER: tl.constexpr):
    """Of each column [N] of a product: which tile of the chunk, which of its PER boxes.

    One thread has columns 8 g + 2 t + {0, 1}, of every g: the boxes of one tile, so that their sum asks no other thread.
    """
    c = tl.arange(0, N)
    if PER == 1:
        return c, c * 0
    LOW: tl.constexpr = PER // 2
    return c // (8 * LOW) * 4 + c // 2 % 4, c // 8 % LOW * 2 + c % 2


@triton.jit
def by_tile(p, PER: tl.constexpr):
    """p [M, N] in the order of `columns` -> [M, N / PER], summed."""
    M: tl.constexpr = p.shape[0]
    N: tl.constexpr = p.shape[1]
    if PER > 1:
        p = tl.sum(tl.sum(tl.reshape(p, [M, N // (4 * PER), PER // 2, 4, 2]), 4), 2)
    return tl.reshape(p, [M, N // PER])


@triton.jit
def queries(p_q, q_strides, row, T, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """q, |q| [M, D] of rows [M] of a head."""
    d = tl.arange(0, BLOCK_D)
    p = p_q + tl.minimum(row, T - 1).to(tl.int64)[:, None] * q_strides[2] + d.to(tl.int64)[None, :] * q_strides[3]
    b_q = tl.load(p, mask=(d < D)[None, :], other=0.0)
    return b_q, tl.abs(b_q)


@triton.jit
def load_boxes(p_box, x, X, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """centre, ALPHA half [N, D] of boxes x [N] of a KV head; 0 of those there are not."""
    d = tl.arange(0, BLOCK_D)
    p = p_box + x.to(tl.int64)[:, None] * (2 * D) + d[None, :]
    m = ((x >= 0) & (x < X))[:, None] & (d < D)[None, :]
    return tl.load(p, mask=m, other=0.0), tl.load(p + D, mask=m, other=0.0)


@triton.jit
def numbers_of(last, BLOCK_N: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr):
    """Numbers of the boxes [N] of the CHUNK tiles of keys before `last`, the last of them first."""
    PER: tl.constexpr = BLOCK_N // BOX
    tile, box = columns(CHUNK * PER, PER)
    return (last // BLOCK_N - 1 - tile) * PER + box


@triton.jit
def turns(last, whole, outer, start, STEP: tl.constexpr):
    """Of the chunks of STEP keys from `last` backwards to `start`: how many come before those that lie in [whole, outer), how
    many with them, and all."""
    count = tl.cdiv(tl.maximum(last - start, 0), STEP)
    before = tl.minimum(tl.cdiv(tl.maximum(last - outer, 0), STEP), count)
    return before, tl.minimum(tl.maximum(tl.maximum(last - whole, 0) // STEP, before), count), count


@triton.jit
def weigh(b_q, b_x, x, first, lo, hi, at, top, total, env, BLOCK_N: tl.constexpr, BOX: tl.constexpr, EDGE: tl.constexpr,
          UPCAST: tl.constexpr):
    """What the tiles of boxes x [N] promise rows [M, CHUNK], relative to 2^top; top and total [M] with theirs.

    At an EDGE boxes before the key `first` count for nothing, nor do those of which a row sees nothing.
    """
    b, h, i = at
    s = dot(b_q[0], tl.trans(b_x[0]), tl.zeros([b_q[0].shape[0], x.shape[0]], tl.float32), UPCAST)
    s = dot(b_q[1], tl.trans(b_x[1]), s, UPCAST)                                               # [M, N]
    j = (x * BOX)[None, :]
    a = score(s, b, h, i, j + BOX // 2, env)
    if EDGE:
        a = tl.where((j >= first) & (j < hi) & (j + BOX > lo), a, float("-inf"))
    new = tl.maximum(top, tl.max(a, 1))                                                        # [M]
    shift = tl.where(new == float("-inf"), 0.0, new)
    part = by_tile(tl.exp2(a - shift[:, None]), BLOCK_N // BOX)                                # [M, CHUNK]
    return part, new, total * tl.exp2(top - shift) + tl.sum(part, 1)
