"""s^T = latent q^T,  o^T += latent^T p^T: keys are the rows of the products, and few queries their columns

A product of 64 rows costs the same however few of them are queries, and one of 64 keys by 16 queries a quarter of that. So one
warpgroup keeps up with memory, nothing is exchanged, and each slot of a tile is on its way again most of the time:

    scores   [N, M]       latent [N, R] as it lies, queries [M, R] turned
    weights  [N, M]       the maximum over keys, which are the rows: across the warps
    sums     [HALF, M]    latent [N, HALF] turned, weights by way of shared memory [M, N]; of left and of right columns

Tiles come from the last key to the first; the pieces of a slot are filled as `loader.py` does, and freed each for itself.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..hooks import HAS_SINK, score, sink
from ..hopper.softmax import SCALE, weigh
from .finish import FREE, leave, note_lse, with_sink
from .memory import hear
from .rows import clean, flat, told
from .steps import bounds_of, within


@gluon.jit
def scores_of_keys(queries, rings, bars, z, zero, phase, layout: gl.constexpr):
    """s [N, M] of the tile in slot z, whose rope part is left. `zero`: so that where the pieces of the queries lie is not kept
    in registers from tile to tile."""
    left, rope, right = rings
    N: gl.constexpr = left.shape[2]
    HALF: gl.constexpr = left.shape[3]
    P: gl.constexpr = rope.shape[3]
    M: gl.constexpr = queries[0].shape[2] * queries[0].shape[3]
    s = gl.zeros([N, M], gl.float32, layout)
    mbarrier.wait(bars[0].index(z), phase)
    b_q = queries[0].index(zero).reshape([M, HALF]).permute([1, 0])                               # [HALF, M]
    s = warpgroup_mma(flat(left, z), b_q, s, use_acc=False, is_async=True)
    mbarrier.wait(bars[0].index(2 + z), phase)
    s = warpgroup_mma(flat(rope, z), queries[1].reshape([M, P]).permute([1, 0]), s, is_async=True)
    mbarrier.wait(bars[0].index(4 + z), phase)
    b_q = queries[0].index(1 + zero).reshape([M, HALF]).permute([1, 0])
    s = warpgroup_mma_wait(0, [warpgroup_mma(flat(right, z), b_q, s, is_async=True)])
    mbarrier.arrive(bars[1].index(2 + z))
    return s


@gluon.jit
def weights_of_keys(s, m, j, j0, rows, bounds, env):
    """p [N, M], m and shrink [M] of `weigh`, for scores s [N, M] of keys j [N, 1]."""
    b, h, i = rows
    a = s
    if SCALE == 0.0:
        a = score(s, b, h, i, j, env)
    a = within(a, j, j0, s.shape[0], bounds)
    return weigh(a, gl.max(a, 0), m, 0.0, 0)


@gluon.jit
def values_of_keys(b_p, rings, bars, z, acc_left, acc_right):
    """acc [HALF, M] += latent^T p^T of both halves of the tile in slot z; each is left as soon as it is read."""
    p = b_p.permute([1, 0])
    o_left = warpgroup_mma(flat(rings[0], z).permute([1, 0]), p, acc_left, is_async=True)
    o_right = warpgroup_mma(flat(rings[2], z).permute([1, 0]), p, acc_right, is_async=True)
    acc_left = warpgroup_mma_wait(1, [o_left])
    mbarrier.arrive(bars[1].index(z))
    acc_right = warpgroup_mma_wait(0, [o_right])
    mbarrier.arrive(bars[1].index(4 + z))
    return acc_left, acc_right


@gluon.jit
def finish_columns(acc_left, acc_right, m, l, rows, place, message, queries, bars, sizes, env, to, BLOCK_H: gl.constexpr):
    """As `finish`, of sums [HALF, M] of one warpgroup, which has both halves; m [M], l [N, M]."""
    layout: gl.constexpr = l.type.layout
    M: gl.constexpr = l.shape[1]
    l = gl.sum(l, 0)
    scale = 1.0 / gl.where(l == 0.0, 1.0, l)
    if HAS_SINK:
        b, h, i = rows
        a = gl.max(sink(b, h, i, env) + gl.zeros([1, M], gl.float32, layout), 0)
        m, l, scale = with_sink(m, l, a, message)
    slot = told(message, 9)
    leave(0, gl.permute(acc_left * scale[None, :], [1, 0]), place, slot, queries, sizes, to, BLOCK_H)
    leave(1, gl.permute(acc_right * scale[None, :], [1, 0]), place, slot, queries, sizes, to, BLOCK_H)
    note_lse(m, l, slot, sizes, to, BLOCK_H)
    tma.store_wait(0)
    mbarrier.arrive(bars[2].index(FREE))


@gluon.jit
def attend(queries, rings, bars, b_p, message, sizes, env, to, BLOCK_H: gl.constexpr):
    """The warpgroup that multiplies."""
    N: gl.constexpr = rings[0].shape[2]
    HALF: gl.constexpr = rings[0].shape[3]
    M: gl.constexpr = b_p.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, M, 16])
    o_j = gl.arange(0, N, gl.SliceLayout(1, layout))[:, None]
    evens = gl.program_id(0) * 0                                    # tiles so far: the use of each slot
    odds = evens
    turn = evens
    more = evens + 1
    while more > 0:
        place, first, begin, last, count = hear(message, bars, turn)
        rows, bounds = bounds_of(place, last, message, sizes, env, BLOCK_H, layout, M, 0)
        more = told(message, 11)
        m = gl.full([M], float("-inf"), gl.float32, gl.SliceLayout(0, layout))
        l = gl.zeros([N, M], gl.float32, layout)
        acc_left = gl.zeros([HALF, M], gl.float32, layout)
        acc_right = gl.zeros([HALF, M], gl.float32, layout)
        for t in range(count):
            z = t % 2
            phase = (gl.where(z == 0, evens, odds) + t // 2) % 2
            j0 = first + (count - 1 - t) * N
            s = scores_of_keys(queries, rings, bars, z, t >> 24, phase, layout)
            p, m, shrink = weights_of_keys(s, m, j0 + o_j, j0, rows, bounds, env)
            l = l * shrink[None, :] + p
            b_p.store(gl.permute(p.to(b_p.dtype), [1, 0]))
            fence_async_shared()
            clean(rings[0], z, j0, begin, last)
            clean(rings[2], z, j0, begin, last)
            acc_left, acc_right = values_of_keys(
                b_p, rings, bars, z, acc_left * shrink[None, :], acc_right * shrink[None, :])
        evens += (count + 1) // 2
        odds += count // 2
        finish_columns(acc_left, acc_right, m, l, rows, place, message, queries, bars, sizes, env, to, BLOCK_H)
        turn += 1
