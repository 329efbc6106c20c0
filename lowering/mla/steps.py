"""Scores, weights, values: the steps of which a pair of tiles is made (`exchange.py`)"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_LO, score
from ..hopper.softmax import SCALE
from ..hopper.tiles import hull
from .rows import CHOSEN, ROWS, clean, flat, rows_at, token_at, told

WEIGHTS = gl.constexpr(3)
"""Barriers: weights of warpgroup w there."""


@gluon.jit
def arrived(bar, phase):
    """Waits for a piece of a tile. Copies that threads made are shown to the tensor cores; those of TMA need not be."""
    mbarrier.wait(bar, phase)
    if CHOSEN:
        fence_async_shared()


@gluon.jit
def scores(queries, b_r, rings, bars, at: gl.constexpr, z, phase):
    """s [64, N] = q_latent latentT + q_rope ropeT of the tile in slot `at`; b_r [64, P], the rope part, in registers."""
    left, rope, right = rings
    N: gl.constexpr = left.shape[2]
    HALF: gl.constexpr = left.shape[3]
    s = gl.zeros([64, N], gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16]))
    arrived(bars[0].index(at), phase)
    b_q = queries[0].index(z).reshape([64, HALF])
    s = warpgroup_mma(b_q, flat(left, at + z).permute([1, 0]), s, use_acc=False, is_async=True)
    arrived(bars[0].index(2 + at), phase)
    s = warpgroup_mma(b_r, flat(rope, at + z).permute([1, 0]), s, is_async=True)
    arrived(bars[0].index(4 + at), phase)
    b_q = queries[0].index(1 + z).reshape([64, HALF])
    s = warpgroup_mma(b_q, flat(right, at + z).permute([1, 0]), s, is_async=True)
    return warpgroup_mma_wait(0, [s])


@gluon.jit
def bounds_of(place, last, message, sizes, env, BLOCK_H: gl.constexpr, layout: gl.constexpr, M: gl.constexpr = ROWS,
              AXIS: gl.constexpr = 1):
    """(b, h, i) of the rows as `rows_at`, and (lo, hi, largest lo, least hi); of positions, not of tokens, hi <= last."""
    b, h0, i0 = place
    h, i, _m_row = rows_at(h0, i0, sizes, BLOCK_H, layout, M, AXIS)
    lo, hi = hull(b, h, i, sizes[3], env)
    if not CHOSEN:
        hi = gl.minimum(hi, last)
    return (b, h, i), (lo, hi, told(message, 8), told(message, 7))


@gluon.jit
def tokens_of(source, at, place, last):
    """Keys [N] at positions `place` [N] of a row of tokens, at = (b, _, i); where all keys are meant, the positions."""
    if CHOSEN:
        return token_at(source[0], source[1], at[0], at[2], place, last)
    else:
        return place


@gluon.jit
def masked(s, token, sizes, rows, bounds, j0, last, env):
    """a [64, N]: with SCALE, s; else the spec's score of s. -inf where a row does not see keys `token` [N].

    bounds = (lo, hi, largest lo, least hi): a tile that all rows see whole is not asked.
    """
    b, h, i = rows
    j = token
    seen = token < last
    if CHOSEN:
        seen = (token >= 0) & (token < sizes[3])
        j = gl.where(seen, token, -1).to(gl.int32)
    j = j[None, :]
    a = s
    if SCALE == 0.0:
        a = score(s, b, h, i, j, env)
    if CHOSEN:
        lo, hi, _above, _below = bounds
        a = gl.where(seen[None, :] & (j < hi), a, float("-inf"))
        if HAS_LO:
            a = gl.where(j >= lo, a, float("-inf"))
    else:
        a = within(a, j, j0, s.shape[1], bounds)
    return a


@gluon.jit
def within(a, j, j0, N: gl.constexpr, bounds):
    """a of keys j, of a tile of N from j0 on: -inf where a row does not see them."""
    lo, hi, above, below = bounds
    if (j0 + N > below) | (j0 < above):
        a = gl.where(j < hi, a, float("-inf"))
        if HAS_LO:
            a = gl.where(j >= lo, a, float("-inf"))
    return a


@gluon.jit
def give(w: gl.constexpr, b_p, small, bars, p, m, shrink):
    """Weights p [64, N], maximum and factor [64] of warpgroup w to the other."""
    b_p[w].store(p)
    small.index(2 * w).store(m)
    small.index(2 * w + 1).store(shrink)
    fence_async_shared()
    mbarrier.arrive(bars[2].index(WEIGHTS + w))


@gluon.jit
def begin_values(p, rings, piece: gl.constexpr, bars, at: gl.constexpr, z, phase, j0, span, acc):
    """acc += p latent[:, piece], begun but not awaited; p [64, N] in registers or in shared memory."""
    ring = rings[piece]
    mbarrier.wait(bars[0].index(2 * piece + at), phase)
    if CHOSEN:
        fence_async_shared()
    else:
        clean(ring, at + z, j0, span[0], span[1])
    return warpgroup_mma(p, flat(ring, at + z), acc, is_async=True)
