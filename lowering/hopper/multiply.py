"""acc = sum_j p_j v_j, the consumer of the Hopper kernel: 64 rows of each item against its live tiles of keys

While the values of one tile are summed, the weights of the next are computed from its scores; the first tile of an item is
taken up beside the values of the last of the item before, so that the tensor cores do not wait between items. Products in
flight at each point of a step:

    scores t + 1, values t          both begun
    wait for all but one            scores t + 1 are there; the slot of K is free
    weights t + 1                   values t still running
    wait for all                    sums are there; the slot of V is free

ptxas moves the last wait above the weights, for nothing orders it against arithmetic, unless a branch stands between. With
OVERLAP one does: V of t + 1 is awaited there, and not before its product.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_RESIDUE
from .classed import list_of
from .messages import ITEMS, leave_turn, receive, take_turn
from .plan import place
from .products import clean, flat, scores
from .results import factor, store
from .tiles import hull, slot
from .weigh import look, pack, thread_sums, unpack, weigh


@gluon.jit
def step(wg: gl.constexpr, bufs, bars, n, use, j0, rows, m, l, packed, acc, env, FIRST: gl.constexpr, MASKED: gl.constexpr,
         PING_PONG: gl.constexpr, POLY: gl.constexpr, OVERLAP: gl.constexpr):
    """The weights of use `use` of the rings and the values of the one before, of another item if FIRST, of none if it is use 0.

    m [64], l [64, 4], packed weights [64, N / 2], acc [64, DV], and by what acc shrinks [64]; rows = (b, h, i), lo, hi.
    """
    q_bars, k_bars, v_bars = bars
    STAGES: gl.constexpr = k_bars[0].shape[0]
    QUERIES: gl.constexpr = q_bars[0].shape[0]
    WARPGROUPS: gl.constexpr = bufs[0][0].shape[0] // QUERIES
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
    mbarrier.wait(k_bars[0].index(k_at), k_phase)
    q_at, q_phase = slot(n, QUERIES)
    if FIRST:
        mbarrier.wait(q_bars[0].index(q_at), q_phase)
    if PING_PONG:
        take_turn(wg)
    s_next = scores(bufs[0], bufs[1], q_at * WARPGROUPS + wg, k_at)                            # [64, N]
    if PING_PONG == 2:
        leave_turn(wg, WARPGROUPS)
    if not OVERLAP:
        mbarrier.wait(v_bars[0].index(v_at), v_phase, pred=some)
    o_next = warpgroup_mma(p, flat(bufs[2][0], v_at), acc, is_async=True)                      # [64, DV]
    if PING_PONG == 1:
        leave_turn(wg, WARPGROUPS)
    s = warpgroup_mma_wait(1, [s_next])
    mbarrier.arrive(k_bars[1].index(k_at))
    weights, m, shrink = weigh(s, m, j0, lo, hi, marks, at, env, BLOCK_N, MASKED, POLY)
    l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None] + thread_sums(weights)
    if OVERLAP:
        mbarrier.wait(v_bars[0].index(k_at), k_phase)
    acc = warpgroup_mma_wait(0, [o_next])
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


@gluon.jit
def rows_of(item, wg: gl.constexpr, sizes, env, layout: gl.constexpr):
    """Of a warpgroup: (b, h, i [64, 1]), lo and hi [64, 1]."""
    i = gl.minimum(item[2] + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout)), sizes[1] - 1)[:, None]
    lo, hi = hull(item[0], item[1], i, sizes[2], env)
    return (item[0], item[1], i), lo, hi


@gluon.jit
def multiply(wg: gl.constexpr, bufs, bars, items, lists, sizes, env, to, PING_PONG: gl.constexpr, POLY: gl.constexpr,
             OVERLAP: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item."""
    WARPGROUPS: gl.constexpr = to[1].shape[0]
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    BLOCK_DV: gl.constexpr = bufs[2][0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    kind: gl.constexpr = bufs[2][0].dtype
    use = 0
    n = 0
    packed = pack(gl.zeros([64, BLOCK_N], gl.float32, s_layout), kind)
    acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
    scale = gl.zeros([64], gl.float32, o_rows)
    done = (sizes[0] * 0, sizes[0] * 0, sizes[0] * 0)
    item = receive(items, 0)
    if PING_PONG and wg == WARPGROUPS - 1:
        leave_turn(wg, WARPGROUPS)
    while item[7] > 0:
        edges = item[6]
        count = item[7]
        p_list = list_of(lists, n, sizes)
        rows = rows_of(item, wg, sizes, env, s_layout)
        j0 = place(item, 0, p_list, sizes, BLOCK_N)
        m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, s_layout))
        l = thread_sums(gl.zeros([64, BLOCK_N], gl.float32, s_layout))                         # [64, 4]
        m, l, packed, acc, _none = step(wg, bufs, bars, n, use, j0, rows, m, l, packed, acc, env, True, True,
                                        PING_PONG, POLY, OVERLAP)
        if use > 0:
            store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(kind))
        clean(bufs[2][0], bars[2], use, j0, item, sizes[2])
        acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
        for region in gl.static_range(2):
            for t in range(1 if region == 0 else gl.maximum(edges, 1), edges if region == 0 else count):
                j0 = place(item, t, p_list, sizes, BLOCK_N)
                m, l, packed, acc, shrink = step(wg, bufs, bars, n, use + t, j0, rows, m, l, packed, acc, env, False,
                                                 region == 0, PING_PONG, POLY, OVERLAP)
                acc = acc * shrink[:, None]
                if region == 0:
                    clean(bufs[2][0], bars[2], use + t, j0, item, sizes[2])
        mbarrier.arrive(bars[0][1].index(n % bars[0][1].shape[0]))
        mbarrier.arrive(items[2].index(n % ITEMS))
        scale = gl.convert_layout(factor(m, l, rows[0], env), o_rows)
        done = (item[0], item[1], item[2])
        use += count
        n += 1
        item = receive(items, n)

    acc = last_values(bufs, bars, use - 1, packed, acc)
    if PING_PONG and wg == 0:
        take_turn(wg)
    store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(kind))
    tma.store_wait(0)
