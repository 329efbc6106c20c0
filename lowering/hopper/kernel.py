"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      a = score(q[b,h,i,:] . k[b,h//GROUP,j,:])

FlashAttention-3 (Shah et al., 2024) for Hopper: one warp loads tiles by TMA into rings of STAGES in shared memory, two
warpgroups of 64 rows each multiply. A warpgroup issues the scores of the next tile, then the values of this one, and
computes the next weights while the values are summed; weights stay in registers, as the left operand.
Shapes: q [B, H, T, D]; k [B, H/GROUP, S, D]; v [B, H/GROUP, S, DV]; out [B, H, T, DV]; unit stride in D, others by 16 bytes.
q, k hold the first BLOCK_D columns, q_rest, k_rest the BLOCK_REST after them: 192 = 128 + 64.
Grid: as many blocks as processors, or as items of work; `tiles.py`.
Traffic: (D + DV) * itemsize bytes per query, and per key of the tile's hull. FLOPs: 2 (D + DV) per visible (i, j).

Barriers. A ring has two per slot: `full` (1 arrival, by TMA) and `empty` (one arrival a warpgroup). Use n of a ring is slot
n % STAGES, and its phase n // STAGES % 2: who reads waits for full at the phase, who writes for empty at the other, which a
new barrier lets pass. Q is a ring of one slot. With PING_PONG, warpgroup w issues products when it has the turn: it waits at
turn[w] and arrives at turn[w + 1]; the first finds its own open.
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

from ..hooks import HAS_LO, HAS_SINK, sink
from .softmax import join_sink, weigh
from .tiles import hull, item, key_range, least, most, rounds

WARPGROUPS = gl.constexpr(2)


@gluon.jit
def slot(use, STAGES: gl.constexpr):
    """Slot and phase of a use of a ring."""
    return use % STAGES, use // STAGES % 2


@gluon.jit
def load_tile(descs, bufs, bars, use, b, h, row, STAGES: gl.constexpr, BLOCK_D: gl.constexpr, REST: gl.constexpr):
    """Rows from `row` on of one head into a slot of a ring [STAGES, 1, 1, rows, BLOCK_D]; with REST into two."""
    full, empty = bars
    at, phase = slot(use, STAGES)
    mbarrier.wait(empty.index(at), phase ^ 1)
    bar = full.index(at)
    mbarrier.expect(bar, descs[0].block_type.nbytes + (descs[1].block_type.nbytes if REST else 0))
    tma.async_copy_global_to_shared(descs[0], [b, h, row, 0], bar, bufs[0].index(at))
    if REST:
        tma.async_copy_global_to_shared(descs[1], [b, h, row, BLOCK_D], bar, bufs[1].index(at))


@gluon.jit
def load_queries(descs, bufs, bars, use, b, h, row, BLOCK_D: gl.constexpr, REST: gl.constexpr):
    """The rows of an item, 64 for each warpgroup, under one barrier."""
    full, empty = bars
    mbarrier.wait(empty.index(0), use % 2 ^ 1)
    bar = full.index(0)
    mbarrier.expect(bar, WARPGROUPS * (descs[0].block_type.nbytes + (descs[1].block_type.nbytes if REST else 0)))
    for wg in gl.static_range(WARPGROUPS):
        tma.async_copy_global_to_shared(descs[0], [b, h, row + wg * 64, 0], bar, bufs[0].index(wg))
        if REST:
            tma.async_copy_global_to_shared(descs[1], [b, h, row + wg * 64, BLOCK_D], bar, bufs[1].index(wg))


@gluon.jit
def load(descs, bufs, bars, sizes, env, GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
         BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_REST: gl.constexpr):
    """The producer: for each item Q once, for each tile of keys K, then V of the tile before: V is needed that much later."""
    q, k, v = descs
    b_q, b_k, b_v = bufs
    q_bars, k_bars, v_bars = bars
    H, T, S, tiles, section, work = sizes
    use = 0
    for turn in range(rounds(work)):
        b, h, row = item(turn, H, tiles, section, BLOCK_M)
        _begin, _end, first, count = key_range(b, h, row, T, S, env, BLOCK_M, BLOCK_N)
        last = first + (count - 1) * BLOCK_N
        load_tile(k, b_k, k_bars, use, b, h // GROUP, last, STAGES, BLOCK_D, BLOCK_REST)
        load_queries(q, b_q, q_bars, turn, b, h, row, BLOCK_D, BLOCK_REST)
        for at in range(1, count):
            load_tile(k, b_k, k_bars, use + at, b, h // GROUP, last - at * BLOCK_N, STAGES, BLOCK_D, BLOCK_REST)
            load_tile(v, b_v, v_bars, use + at - 1, b, h // GROUP, last - (at - 1) * BLOCK_N, STAGES, BLOCK_D, 0)
        load_tile(v, b_v, v_bars, use + count - 1, b, h // GROUP, first, STAGES, BLOCK_D, 0)
        use += count


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
def multiply(wg: gl.constexpr, bufs, bars, turn_bars, sizes, env, to, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
             BLOCK_N: gl.constexpr, BLOCK_REST: gl.constexpr, DV: gl.constexpr, PING_PONG: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item."""
    b_q, b_k, b_v = bufs
    q_bars, k_bars, v_bars = bars
    H, T, S, tiles, section, work = sizes
    out, strides = to
    BLOCK_DV: gl.constexpr = b_v[0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    store_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_DV, BLOCK_DV // 8], [4, 1], [1, 0])
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
        b_out = (acc * gl.convert_layout(scale, o_rows)[:, None]).to(kind)
        o_m = row + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, store_layout))
        o_d = gl.arange(0, BLOCK_DV, gl.SliceLayout(0, store_layout))
        p_out = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1]
        p_out = p_out + o_m.to(gl.int64)[:, None] * strides[2] + o_d[None, :]
        gl.store(p_out, gl.convert_layout(b_out, store_layout), mask=(o_m < T)[:, None] & (o_d < DV)[None, :])


@gluon.jit
def ring(STAGES: gl.constexpr):
    """full, empty: the barriers of a ring."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(STAGES):
        mbarrier.init(full.index(at), count=1)
        mbarrier.init(empty.index(at), count=WARPGROUPS)
    return full, empty


@gluon.jit
def space(desc, STAGES: gl.constexpr):
    """A ring of tiles of a descriptor."""
    ROWS: gl.constexpr = desc.block_type.shape[2]
    COLUMNS: gl.constexpr = desc.block_type.shape[3]
    return gl.allocate_shared_memory(desc.dtype, [STAGES, 1, 1, ROWS, COLUMNS], desc.layout)


@gluon.jit(do_not_specialize=["H", "T", "S", "tiles", "section", "work"])
def hopper(q, q_rest, k, k_rest, v, out, out_strides, H, T, S, tiles, section, work,
           operands, DV: gl.constexpr, GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
           BLOCK_D: gl.constexpr, BLOCK_REST: gl.constexpr, STAGES: gl.constexpr, PING_PONG: gl.constexpr):
    env = operands
    wide = (space(q, WARPGROUPS), space(k, STAGES), space(v, STAGES))
    descs = ((q,), (k,), (v,))
    bufs = ((wide[0],), (wide[1],), (wide[2],))
    if BLOCK_REST:
        descs = ((q, q_rest), (k, k_rest), (v,))  # type: ignore[assignment]
        bufs = ((wide[0], space(q_rest, WARPGROUPS)), (wide[1], space(k_rest, STAGES)), (wide[2],))  # type: ignore[assignment]
    bars = (ring(1), ring(STAGES), ring(STAGES))
    turn_bars = gl.allocate_shared_memory(gl.int64, [WARPGROUPS, 1], mbarrier.MBarrierLayout())
    for wg in gl.static_range(WARPGROUPS):
        mbarrier.init(turn_bars.index(wg), count=1)
    fence_async_shared()
    sizes = (H, T, S, tiles, section, work)
    to = (out, out_strides)
    gl.warp_specialize([
        (multiply, (0, bufs, bars, turn_bars, sizes, env, to, STAGES, BLOCK_M, BLOCK_N, BLOCK_REST, DV, PING_PONG)),
        (multiply, (1, bufs, bars, turn_bars, sizes, env, to, STAGES, BLOCK_M, BLOCK_N, BLOCK_REST, DV, PING_PONG)),
        (load, (descs, bufs, bars, sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_REST)),
    ], [4, 1], [240, 24])
