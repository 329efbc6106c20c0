"""acc += p_t v_t of the tiles t that a row may need: one step of a consumer of the Hopper kernel with a threshold

As `hopper/step.py`, whose places these take: the scores of a tile, beside the values of the one before if that is needed. A
warpgroup leaves a tile out where each of its 64 rows does, by the rule of `scan.py`: no exponentials, no product, and if the
others leave it out too, no values from memory. Both forms of a step are there, for a product in flight ends in the branch it
began in.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import limit, score
from ..hopper.products import scores
from ..hopper.rescale import LAG
from ..hopper.rings import flat
from ..hopper.softmax import SCALE, exp2, weigh
from ..hopper.tiles import slot
from ..hopper.weigh import keys_of, mask, pack, row_max, thread_sums, unpack
from .told import tell

BUDGET = gl.constexpr(False)


@gluon.jit
def smallest(count, env, BLOCK_N: gl.constexpr):
    """log2 of the ratio of weights below which a tile of an item of `count` tiles goes."""
    least = limit(env)
    if BUDGET:
        least -= gl.log2((count * BLOCK_N).to(gl.float32))
    return least


@gluon.jit
def log2(x):
    """Of a number that is not small, within 2^-22: `gl.log2` is twenty instructions and a branch."""
    return gl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def met(y, best):
    """log2(2^y + 2^best) [M]."""
    top = gl.maximum(y, best)
    shift = gl.where(top == float("-inf"), 0.0, top)
    return top + log2(exp2(y - shift) + exp2(best - shift))


@gluon.jit
def decide(wg: gl.constexpr, bars, use, s, j0, rows, sums, least, env, BLOCK_N: gl.constexpr, MASKED: gl.constexpr):
    """Weights [64, N] if the tile of scores s is needed, whether it is, by what the sums so far shrink [64]; m, l and y.

    sums = m [64], l [64, 4], y [64], of the best keys met. Tells the loader.
    """
    at, lo, hi = rows
    b, h, i = at
    m, l, y = sums
    a = s
    if SCALE == 0.0:
        first, apart = keys_of(j0, s.type.layout, BLOCK_N)
        a = score(s, b, h, i, first + apart, env)                                              # [64, N]
    if MASKED:
        a = mask(a, j0, lo, hi, 0, BLOCK_N)
    highest = gl.convert_layout(row_max(a), m.type.layout)
    best = highest * SCALE if SCALE != 0.0 else highest                                        # [64]
    wanted = (best != float("-inf")) & ((best >= y + least) | (best != best))
    needed = tell(bars, wg, use, wanted)
    y = met(y, best)
    shrink = gl.full([64], 1.0, gl.float32, m.type.layout)
    if needed > 0:
        a, m, shrink = weigh(a, highest, m, LAG)
        l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None] + thread_sums(a)
    return a, needed, shrink, m, l, y


@gluon.jit
def step(wg: gl.constexpr, bufs, bars, n, use, j0, rows, sums, packed, pending, acc, least, env, FIRST: gl.constexpr,
         MASKED: gl.constexpr):
    """sums, packed weights [64, N / 2] and whether there are any, acc [64, DV], and by what acc shrinks [64].

    Of use `use` of the ring of k and, if `pending`, the values of the one before; rows = (b, h, i), lo, hi.
    """
    q_bars, k_bars, v_bars, _told = bars
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    QUERIES: gl.constexpr = q_bars[0].shape[0]
    kind: gl.constexpr = bufs[2][0].dtype
    k_at, k_phase = slot(use, k_bars[0].shape[0])
    v_at, v_phase = slot(gl.maximum(use - 1, 0) if FIRST else use - 1, v_bars[0].shape[0])
    q_at, q_phase = slot(n, QUERIES)
    q_tile = q_at * (bufs[0][0].shape[0] // QUERIES) + wg
    mbarrier.wait(k_bars[0].index(k_at), k_phase)
    if FIRST:
        mbarrier.wait(q_bars[0].index(q_at), q_phase)
    if pending > 0:
        p = unpack(packed, kind, gl.DotOperandLayout(0, acc.type.layout, 2))                   # [64, N]
        s_next = scores(bufs[0], bufs[1], q_tile, k_at)
        mbarrier.wait(v_bars[0].index(v_at), v_phase)
        o_next = warpgroup_mma(p, flat(bufs[2][0], v_at), acc, is_async=True)
        s = warpgroup_mma_wait(1, [s_next])                                                    # [64, N]
        mbarrier.arrive(k_bars[1].index(k_at))
        a, needed, shrink, m, l, y = decide(wg, bars, use, s, j0, rows, sums, least, env, BLOCK_N, MASKED)
        acc = warpgroup_mma_wait(0, [o_next])                                                  # [64, DV]
    else:
        s = warpgroup_mma_wait(0, [scores(bufs[0], bufs[1], q_tile, k_at)])
        mbarrier.arrive(k_bars[1].index(k_at))
        a, needed, shrink, m, l, y = decide(wg, bars, use, s, j0, rows, sums, least, env, BLOCK_N, MASKED)
        mbarrier.wait(v_bars[0].index(v_at), v_phase, pred=use > 0)
    if needed > 0:
        packed = pack(a, kind)
    mbarrier.arrive(v_bars[1].index(v_at), pred=use > 0)
    return (m, l, y), packed, needed, acc, gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))


@gluon.jit
def last_values(bufs, bars, use, packed, pending, acc):
    """acc [64, DV] with the values of the last use of all, if they are needed."""
    if pending > 0:
        v_at, v_phase = slot(use, bars[2][0].shape[0])
        p = unpack(packed, bufs[2][0].dtype, gl.DotOperandLayout(0, acc.type.layout, 2))
        mbarrier.wait(bars[2][0].index(v_at), v_phase)
        acc = warpgroup_mma_wait(0, [warpgroup_mma(p, flat(bufs[2][0], v_at), acc, is_async=True)])
    return acc
