"""acc = sum_j p_j v_j, the consumer of the Hopper kernel: 64 rows of each item against its live tiles of keys

While the values of one tile are summed, the weights of the next are computed from its scores; the first tile of an item is
taken up beside the values of the last of the item before, so that the tensor cores do not wait between items. Products in
flight at each point:

    scores t + 1, values t          both begun
    wait for all but one            scores t + 1 are there; the slot of K is free
    weights t + 1                   values t still running
    wait for all                    sums are there; the slot of V is free
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

from ..hooks import HAS_RESIDUE, HAS_SINK, sink
from .messages import ITEMS, leave_turn, receive, take_turn
from .plan import list_of, place
from .softmax import join_sink
from .tiles import hull, slot
from .weigh import look, pack, thread_sums, unpack, weigh


@gluon.jit
def flat(buf, at):
    """Slot `at` of a ring [STAGES, 1, 1, rows, columns] as [rows, columns]."""
    return buf.index(at).reshape([buf.shape[3], buf.shape[4]])


@gluon.jit
def scores(b_q, b_k, q_at, at):
    """s [64, N] = q kT, begun but not awaited."""
    BLOCK_N: gl.constexpr = b_k[0].shape[3]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    s = gl.zeros([64, BLOCK_N], gl.float32, layout)
    s = warpgroup_mma(flat(b_q[0], q_at), flat(b_k[0], at).permute([1, 0]), s, use_acc=False, is_async=True)
    if len(b_q) > 1:
        s = warpgroup_mma(flat(b_q[1], q_at), flat(b_k[1], at).permute([1, 0]), s, is_async=True)
    return s


@gluon.jit
def clean(b_v, bars, use, j0, item, S):
    """Zeroes the rows of a tile of v that no row sees: their weight is 0, but they may hold NaN. TMA has those beyond S.

    Each warpgroup does so, with the same bytes, so that none waits for another.
    """
    begin = item[3]
    end = item[4]
    BLOCK_N: gl.constexpr = b_v.shape[3]
    if (j0 < begin) | ((j0 + BLOCK_N > end) & (end < S)):
        DV: gl.constexpr = b_v.shape[4]
        at, phase = slot(use, bars[0].shape[0])
        mbarrier.wait(bars[0].index(at), phase)
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DV, DV // 8], [4, 1], [1, 0])
        j = j0 + gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
        tile = flat(b_v, at)
        tile.store(gl.where(((j >= begin) & (j < end))[:, None], tile.load(layout), 0.0))
        fence_async_shared()


@gluon.jit
def store(to, wg: gl.constexpr, b, h, row, x):
    """x [64, DV] as rows row .. row + 63 of one head, all columns at once or each half; TMA leaves out those beyond T."""
    out, b_out = to
    W: gl.constexpr = b_out.shape[4]
    parts = (x,)
    if x.shape[1] > W:
        parts = gl.split(gl.permute(gl.reshape(x, [64, 2, W]), [0, 2, 1]))
    for part in gl.static_range(x.shape[1] // W):
        tma.store_wait(0)                                           # what was stored before has left shared memory
        flat(b_out, wg).store(parts[part])
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [b, h, row, part * W], b_out.index(wg))


@gluon.jit
def factor(m, l, at, env):
    """1 / sum [64] of the weights of a row, the sink's among them: 1 in a row without any; m [64], l [64, 4]."""
    b, h, i = at
    layout: gl.constexpr = i.type.layout
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    l = gl.convert_layout(gl.sum(l, 1), rows)
    shrink = gl.full([64], 1.0, gl.float32, rows)
    if HAS_SINK:
        m, l, shrink = join_sink(m, l, gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, layout), 1))
    return shrink / gl.where(l == 0.0, 1.0, l)


@gluon.jit
def multiply(wg: gl.constexpr, bufs, bars, items, lists, sizes, env, to, PING_PONG: gl.constexpr, POLY: gl.constexpr, OVERLAP: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item."""
    b_q, b_k, b_v = bufs
    q_bars, k_bars, v_bars = bars
    T = sizes[1]
    S = sizes[2]
    STAGES: gl.constexpr = k_bars[0].shape[0]
    QUERIES: gl.constexpr = q_bars[0].shape[0]
    WARPGROUPS: gl.constexpr = to[1].shape[0]
    BLOCK_N: gl.constexpr = b_k[0].shape[3]
    BLOCK_DV: gl.constexpr = b_v[0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    kind: gl.constexpr = b_v[0].dtype
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
        b = item[0]
        h = item[1]
        row = item[2]
        edges = item[6]
        count = item[7]
        p_list = list_of(lists, n, sizes)
        i = gl.minimum(row + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, s_layout)), T - 1)[:, None]
        at = (b, h, i)
        lo, hi = hull(b, h, i, S, env)
        q_at, q_phase = slot(n, QUERIES)
        k_at, k_phase = slot(use, STAGES)
        v_at, v_phase = slot(gl.maximum(use - 1, 0), STAGES)
        p = unpack(packed, kind, p_layout)
        j0 = place(item, 0, p_list, sizes, BLOCK_N)
        marks = 0
        if HAS_RESIDUE:
            marks = look(j0, lo, hi, at, env, BLOCK_N)
        mbarrier.wait(k_bars[0].index(k_at), k_phase)
        mbarrier.wait(q_bars[0].index(q_at), q_phase)
        if PING_PONG:
            take_turn(wg)
        s_next = scores(b_q, b_k, q_at * WARPGROUPS + wg, k_at)
        if PING_PONG == 2:
            leave_turn(wg, WARPGROUPS)
        if not OVERLAP:
            mbarrier.wait(v_bars[0].index(v_at), v_phase, pred=use > 0)
        o_next = warpgroup_mma(p, flat(b_v[0], v_at), acc, is_async=True)
        if PING_PONG == 1:
            leave_turn(wg, WARPGROUPS)
        s = warpgroup_mma_wait(1, [s_next])
        mbarrier.arrive(k_bars[1].index(k_at))
        m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, s_layout))
        weights, m, _none = weigh(s, m, j0, lo, hi, marks, at, env, BLOCK_N, True, POLY)
        l = thread_sums(weights)
        if OVERLAP:
            mbarrier.wait(v_bars[0].index(k_at), k_phase)
        acc = warpgroup_mma_wait(0, [o_next])
        packed = pack(weights, kind)
        mbarrier.arrive(v_bars[1].index(v_at), pred=use > 0)
        if use > 0:
            store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(kind))
        clean(b_v[0], v_bars, use, j0, item, S)
        acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)

        for region in gl.static_range(2):
            for t in range(1 if region == 0 else gl.maximum(edges, 1), edges if region == 0 else count):
                k_at, k_phase = slot(use + t, STAGES)
                v_at, v_phase = slot(use + t - 1, STAGES)
                p = unpack(packed, kind, p_layout)
                j0 = place(item, t, p_list, sizes, BLOCK_N)
                if HAS_RESIDUE and region == 0:
                    marks = look(j0, lo, hi, at, env, BLOCK_N)
                mbarrier.wait(k_bars[0].index(k_at), k_phase)
                if PING_PONG:
                    take_turn(wg)
                s_next = scores(b_q, b_k, q_at * WARPGROUPS + wg, k_at)
                if PING_PONG == 2:
                    leave_turn(wg, WARPGROUPS)
                if not OVERLAP:
                    mbarrier.wait(v_bars[0].index(v_at), v_phase)
                o_next = warpgroup_mma(p, flat(b_v[0], v_at), acc, is_async=True)
                if PING_PONG == 1:
                    leave_turn(wg, WARPGROUPS)
                s = warpgroup_mma_wait(1, [s_next])
                mbarrier.arrive(k_bars[1].index(k_at))
                weights, m, shrink = weigh(s, m, j0, lo, hi, marks, at, env, BLOCK_N, region == 0, POLY)
                l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None] + thread_sums(weights)
                if OVERLAP:
                    mbarrier.wait(v_bars[0].index(k_at), k_phase)
                acc = warpgroup_mma_wait(0, [o_next])
                packed = pack(weights, kind)
                mbarrier.arrive(v_bars[1].index(v_at))
                acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
                if region == 0:
                    clean(b_v[0], v_bars, use + t, j0, item, S)

        mbarrier.arrive(q_bars[1].index(q_at))
        mbarrier.arrive(items[2].index(n % ITEMS))
        scale = gl.convert_layout(factor(m, l, at, env), o_rows)
        done = (b, h, row)
        use += count
        n += 1
        item = receive(items, n)

    p = unpack(packed, kind, p_layout)
    v_at, v_phase = slot(use - 1, STAGES)
    mbarrier.wait(v_bars[0].index(v_at), v_phase)
    acc = warpgroup_mma_wait(0, [warpgroup_mma(p, flat(b_v[0], v_at), acc, is_async=True)])
    if PING_PONG and wg == 0:
        take_turn(wg)
    store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(kind))
    tma.store_wait(0)
