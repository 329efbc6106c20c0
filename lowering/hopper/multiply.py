"""acc = sum_j p_j v_j, the consumer of the Hopper kernel: 64 rows of each row tile against the keys of its hull

Tiles of keys come from the last to the first: under a causal mask the first to come is the one on the diagonal. While the
values of one tile are summed, the weights of the next are computed from its scores. Products in flight at each point:

    scores t + 1, values t          both begun
    wait for all but one            scores t + 1 are there; the slot of K is free
    weights t + 1                   values t still running
    wait for all                    sums are there; the slot of V is free
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_LO, HAS_SINK, sink
from .softmax import join_sink, weigh
from .tiles import WARPGROUPS, hull, item, key_range, least, most, rounds, slot


@gluon.jit
def flat(buf, at, rows: gl.constexpr):
    """Slot `at` of a ring [STAGES, 1, 1, rows, columns] as [rows, columns]."""
    return buf.index(at).reshape([rows, buf.shape[4]])


@gluon.jit
def scores(b_q, b_k, wg: gl.constexpr, at, BLOCK_N: gl.constexpr, BLOCK_REST: gl.constexpr):
    """s [64, N] = q kT, begun but not awaited."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    s = gl.zeros([64, BLOCK_N], gl.float32, layout)
    s = warpgroup_mma(flat(b_q[0], wg, 64), flat(b_k[0], at, BLOCK_N).permute([1, 0]), s, use_acc=False, is_async=True)
    if BLOCK_REST:
        s = warpgroup_mma(flat(b_q[1], wg, 64), flat(b_k[1], at, BLOCK_N).permute([1, 0]), s, is_async=True)
    return s


@gluon.jit
def clean(b_v, at, j0, begin, end, BLOCK_N: gl.constexpr, DV: gl.constexpr):
    """Zeroes the rows of a tile of v that no row sees: their weight is 0, but they may hold NaN.

    Each warpgroup does so, with the same bytes, so that none waits for another.
    """
    if (j0 < begin) | (j0 + BLOCK_N > end):
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DV, DV // 8], [4, 1], [1, 0])
        j = j0 + gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
        tile = flat(b_v, at, BLOCK_N)
        value = tile.load(layout)
        tile.store(gl.where(((j >= begin) & (j < end))[:, None], value, 0.0))
        fence_async_shared()


@gluon.jit
def store(to, b, h, row, T, b_out, DV: gl.constexpr):
    """64 rows from `row` on of one head; b_out [64, BLOCK_DV]."""
    out, strides = to
    BLOCK_DV: gl.constexpr = b_out.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_DV, BLOCK_DV // 8], [4, 1], [1, 0])
    o_m = row + gl.arange(0, 64, gl.SliceLayout(1, layout))
    o_d = gl.arange(0, BLOCK_DV, gl.SliceLayout(0, layout))
    p_out = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1]
    p_out = p_out + o_m.to(gl.int64)[:, None] * strides[2] + o_d[None, :]
    gl.store(p_out, gl.convert_layout(b_out, layout), mask=(o_m < T)[:, None] & (o_d < DV)[None, :])


@gluon.jit
def multiply(wg: gl.constexpr, bufs, bars, turn_bars, sizes, env, to, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
             BLOCK_N: gl.constexpr, BLOCK_REST: gl.constexpr, DV: gl.constexpr, PING_PONG: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item."""
    b_q, b_k, b_v = bufs
    q_bars, k_bars, v_bars = bars
    H, T, S, tiles, section, work = sizes
    BLOCK_DV: gl.constexpr = b_v[0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    kind: gl.constexpr = b_v[0].dtype
    use = 0
    steps = 0
    for turn in range(rounds(work)):
        b, h, row = item(turn, H, tiles, section, BLOCK_M)
        begin, end, first, count = key_range(b, h, row, T, S, env, BLOCK_M, BLOCK_N)
        last = first + (count - 1) * BLOCK_N
        i = gl.minimum(row + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, s_layout)), T - 1)[:, None]
        at = (b, h, i)
        lo, hi = hull(b, h, i, S, env)
        m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, s_layout))
        l = gl.zeros([64], gl.float32, gl.SliceLayout(1, s_layout))
        acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
        # tiles by distance from the last one: [1, upper) under the hull as mask, [upper, lower) not, [lower, count) again
        upper = gl.minimum(gl.maximum(count - gl.maximum(gl.minimum(least(hi), end) - first, 0) // BLOCK_N, 1), count)
        lower = count
        if HAS_LO:
            lower = gl.maximum(count - (gl.maximum(most(lo) - first, 0) + BLOCK_N - 1) // BLOCK_N, upper)

        k_at, phase = slot(use, STAGES)
        mbarrier.wait(k_bars[0].index(k_at), phase)
        mbarrier.wait(q_bars[0].index(0), turn % 2)
        s = warpgroup_mma_wait(0, [scores(b_q, b_k, wg, k_at, BLOCK_N, BLOCK_REST)])
        mbarrier.arrive(k_bars[1].index(k_at))
        mbarrier.wait(v_bars[0].index(k_at), phase)
        clean(b_v[0], k_at, last, begin, end, BLOCK_N, BLOCK_DV)
        weights, m, l, shrink = weigh(s, m, l, last, lo, hi, at, env, BLOCK_N, True)

        for region in gl.static_range(3 if HAS_LO else 2):
            for t in range(1 if region == 0 else upper if region == 1 else lower,
                           upper if region == 0 else lower if region == 1 else count):
                k_at, k_phase = slot(use + t, STAGES)
                v_at, v_phase = slot(use + t - 1, STAGES)
                p = gl.convert_layout(weights.to(kind), p_layout)
                mbarrier.wait(k_bars[0].index(k_at), k_phase)
                if PING_PONG:
                    mbarrier.wait(turn_bars.index(wg), (steps + t - 1 + (1 if wg == 0 else 0)) % 2)
                s_next = scores(b_q, b_k, wg, k_at, BLOCK_N, BLOCK_REST)
                mbarrier.wait(v_bars[0].index(v_at), v_phase)
                o_next = warpgroup_mma(p, flat(b_v[0], v_at, BLOCK_N), acc, is_async=True)
                if PING_PONG:
                    mbarrier.arrive(turn_bars.index((wg + 1) % WARPGROUPS))
                s = warpgroup_mma_wait(1, [s_next])
                mbarrier.arrive(k_bars[1].index(k_at))
                weights, m, l, shrink = weigh(s, m, l, last - t * BLOCK_N, lo, hi, at, env, BLOCK_N, region != 1)
                acc = warpgroup_mma_wait(0, [o_next])
                mbarrier.arrive(v_bars[1].index(v_at))
                acc = acc * gl.convert_layout(shrink, o_rows)[:, None]

        mbarrier.arrive(q_bars[1].index(0))
        v_at, phase = slot(use + count - 1, STAGES)
        mbarrier.wait(v_bars[0].index(v_at), phase)
        if HAS_LO:
            clean(b_v[0], v_at, first, begin, end, BLOCK_N, BLOCK_DV)
        p = gl.convert_layout(weights.to(kind), p_layout)
        acc = warpgroup_mma_wait(0, [warpgroup_mma(p, flat(b_v[0], v_at, BLOCK_N), acc, is_async=True)])
        mbarrier.arrive(v_bars[1].index(v_at))
        use += count
        steps += count - 1

        if HAS_SINK:
            m, l, shrink = join_sink(m, l, gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, s_layout), 1))
            acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
        scale = 1.0 / gl.where(l == 0.0, 1.0, l)
        store(to, b, h, row + wg * 64, T, (acc * gl.convert_layout(scale, o_rows)[:, None]).to(kind), DV)
