"""p_t+1 = weights of s_t+1, acc += p_t v_t: one step of a consumer of the Hopper kernel, a tile of keys and the one before

While the values of one tile are summed, the weights of the next are computed from its scores. Products in flight:

    scores t + 1, values t          both begun
    wait for all but one            scores t + 1 are there; the slot of K is free
    weights t + 1                   values t still running
    wait for all                    sums are there; the slot of V is free

ptxas moves the last wait above the weights, for nothing orders it against arithmetic, unless a branch stands between. With
OVERLAP one does: V of t + 1 is awaited there, and not before its product.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_RESIDUE
from .messages import leave_turn, take_turn
from .products import scores
from .rings import flat
from .tiles import slot
from .weigh import look, pack, thread_sums, unpack, weigh_scores


@gluon.jit
def begin(wg: gl.constexpr, bufs, bars, n, slots, p, acc, some, FIRST: gl.constexpr, PING_PONG: gl.constexpr,
          OVERLAP: gl.constexpr):
    """Scores [64, N] of a tile, and acc [64, DV] with the values of the one before, whose weights are p [64, N]: begun."""
    q_bars, k_bars, v_bars = bars
    k_at, k_phase, v_at, v_phase = slots
    QUERIES: gl.constexpr = q_bars[0].shape[0]
    WARPGROUPS: gl.constexpr = bufs[0][0].shape[0] // QUERIES
    mbarrier.wait(k_bars[0].index(k_at), k_phase)
    q_at, q_phase = slot(n, QUERIES)
    if FIRST:
        mbarrier.wait(q_bars[0].index(q_at), q_phase)
    if PING_PONG:
        take_turn(wg)
    s = scores(bufs[0], bufs[1], q_at * WARPGROUPS + wg, k_at)
    if not OVERLAP:
        mbarrier.wait(v_bars[0].index(v_at), v_phase, pred=some)
    acc = warpgroup_mma(p, flat(bufs[2][0], v_at), acc, is_async=True)
    if PING_PONG:
        leave_turn(wg, WARPGROUPS)
    return s, acc


@gluon.jit
def step(wg: gl.constexpr, bufs, bars, n, use, j0, rows, m, l, packed, acc, env, FIRST: gl.constexpr, MASKED: gl.constexpr,
         PING_PONG: gl.constexpr, OVERLAP: gl.constexpr):
    """The weights of use `use` of the rings and the values of the one before, of another item if FIRST, of none if it is use 0.

    m [64], l [64, 4], packed weights [64, N / 2], acc [64, DV], and by what acc shrinks [64]; rows = (b, h, i), lo, hi.
    """
    _, k_bars, v_bars = bars
    STAGES: gl.constexpr = k_bars[0].shape[0]
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    kind: gl.constexpr = bufs[2][0].dtype
    at, lo, hi = rows
    k_at, k_phase = slot(use, STAGES)
    v_at, v_phase = slot(gl.maximum(use - 1, 0) if FIRST else use - 1, STAGES)
    some = use > 0 if FIRST else True
    p = unpack(packed, kind, gl.DotOperandLayout(0, acc.type.layout, 2))                       # [64, N]
    marks = 0
    if HAS_RESIDUE and MASKED:
        marks = look(j0, lo, hi, at, env, BLOCK_N)
    s_next, o_next = begin(wg, bufs, bars, n, (k_at, k_phase, v_at, v_phase), p, acc, some, FIRST, PING_PONG, OVERLAP)
    s = warpgroup_mma_wait(1, [s_next])                                                        # [64, N]
    mbarrier.arrive(k_bars[1].index(k_at))
    weights, m, shrink = weigh_scores(s, m, j0, lo, hi, marks, at, env, BLOCK_N, MASKED)
    l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None] + thread_sums(weights)
    if OVERLAP:
        mbarrier.wait(v_bars[0].index(k_at), k_phase)
    acc = warpgroup_mma_wait(0, [o_next])                                                      # [64, DV]
    packed = pack(weights, kind)
    mbarrier.arrive(v_bars[1].index(v_at), pred=some)
    return m, l, packed, acc, gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))


@gluon.jit
def last_values(bufs, bars, use, packed, acc):
    """acc [64, DV] with the values of the last use of all."""
    v_at, v_phase = slot(use, bars[2][0].shape[0])
    p = unpack(packed, bufs[2][0].dtype, gl.DotOperandLayout(0, acc.type.layout, 2))
    mbarrier.wait(bars[2][0].index(v_at), v_phase)
    return warpgroup_mma_wait(0, [warpgroup_mma(p, flat(bufs[2][0], v_at), acc, is_async=True)])
