"""acc = sum_j p_j v_j, the consumer of the Hopper decode kernel: 64 rows of each item against the key tiles of its share"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_LO, HAS_RESIDUE, HAS_SINK, sink
from ..hopper.rings import flat
from ..hopper.softmax import join_sink
from ..hopper.tiles import hull, least, most, slot, uniform
from .balance import divide, keys_of, keys_of_part, parts_of, row_tiles
from .early import asked_early, pass_over
from .parts import join_parts, place, rows_of, store_part, store_rows
from .weights import class_of, weigh_scores


@gluon.jit
def fill_queries(b_q, q, strides, b, x, T, wg: gl.constexpr, D: gl.constexpr, GROUP: gl.constexpr, BLOCK_M: gl.constexpr,
                 BLOCK_T: gl.constexpr):
    """q[b, h, i, :] of this warpgroup's rows into b_q [M, BLOCK_D]; 0 in rows past the end."""
    W: gl.constexpr = b_q.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
    h, i, m_row = rows_of(x, wg * 64, T, GROUP, BLOCK_M, BLOCK_T, b_q.shape[0], gl.SliceLayout(1, layout))
    o_d = gl.arange(0, W, gl.SliceLayout(0, layout))[None, :]
    p = q + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
    b_q.store(gl.load(p + o_d, mask=m_row & (o_d < D), other=0.0))
    fence_async_shared()


@gluon.jit
def clean(b_v, j0, begin, end):
    """Zeroes the rows of a tile of v that no row sees: their weight is 0, but they may hold NaN. All readers write alike."""
    N: gl.constexpr = b_v.shape[0]
    W: gl.constexpr = b_v.shape[1]
    if (j0 < begin) | (j0 + N > end):
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
        j = j0 + gl.arange(0, N, gl.SliceLayout(1, layout))
        b_v.store(gl.where(((j >= begin) & (j < end))[:, None], b_v.load(layout), 0.0))
        fence_async_shared()


@gluon.jit
def first_key(rings, use, j0):
    """The position of the first key of the tile of a use of the rings, which is there: the one in the line of its item."""
    return j0


@gluon.jit
def attend_tiles(b_q, rings, bars, use, first, count, at, lo, hi, span, env, STAGES: gl.constexpr, BLOCK_N: gl.constexpr):
    """acc [64, BLOCK_DV], m, l [64] of `count` key tiles from `first` on; span = (begin, end), the keys that any row sees."""
    b_k, b_v = rings[0], rings[1]
    k_bars, v_bars = bars
    DV: gl.constexpr = b_v.shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DV, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, s_layout))
    l = gl.zeros([64], gl.float32, gl.SliceLayout(1, s_layout))
    acc = gl.zeros([64, DV], gl.float32, o_layout)
    inside = uniform(most(lo)) if HAS_LO else first
    beyond = uniform(least(hi))
    for t in range(count):
        slot_at, phase = slot(use + t, STAGES)
        if HAS_RESIDUE:
            shown = class_of(at[0], first + t * BLOCK_N, env, BLOCK_N)                         # while the tile is on its way
        mbarrier.wait(k_bars[0].index(slot_at), phase)
        j0 = first_key(rings, use + t, first + t * BLOCK_N)
        zero = gl.zeros([64, BLOCK_N], gl.float32, s_layout)
        s = warpgroup_mma(b_q, flat(b_k, slot_at).permute([1, 0]), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(k_bars[1].index(slot_at))
        whole = (j0 >= inside) & (j0 + BLOCK_N <= beyond)
        if HAS_RESIDUE:
            whole = whole & (shown == 2)
        if whole:
            p, m, l, shrink = weigh_scores(s, m, l, j0, lo, hi, at, env, BLOCK_N, False)
        else:
            p, m, l, shrink = weigh_scores(s, m, l, j0, lo, hi, at, env, BLOCK_N, True)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, o_layout))[:, None]
        weights = gl.convert_layout(p.to(b_v.dtype), p_layout)
        mbarrier.wait(v_bars[0].index(slot_at), phase)
        clean(flat(b_v, slot_at), j0, span[0], span[1])
        acc = warpgroup_mma_wait(0, [warpgroup_mma(weights, flat(b_v, slot_at), acc, is_async=True)])
        mbarrier.arrive(v_bars[1].index(slot_at))
    return acc, m, l


@gluon.jit
def finish(wg: gl.constexpr, tensors, acc, lse, part, item, first, parts, T, items, DV: gl.constexpr, GROUP: gl.constexpr,
           BLOCK_M: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """Stores acc [M, BLOCK_DV], an item or, of one in several parts, a part; the last to come joins them."""
    _q, _q_strides, out, out_strides, workspace, counters = tensors
    WARPGROUPS: gl.constexpr = (BLOCK_M + 63) // 64
    b = item // items
    x = item - b * items
    h, i, m_row = rows_of(x, wg * 64, T, GROUP, BLOCK_M, BLOCK_T, acc.shape[0], gl.SliceLayout(1, acc.type.layout))
    if parts == 1:
        store_rows(out, out_strides, acc, b, h, i, m_row, DV)
    else:
        store_part(place(workspace, part, part - first, wg, WARPGROUPS, ROWS, DV), acc, lse, m_row, DV, ROWS)
        tl.debug_barrier()                                          # all threads have stored before one of them counts
        count_at = counters + item * WARPGROUPS + wg
        if uniform(gl.atomic_add(count_at, 1, sem="acq_rel")) == parts - 1:
            gl.store(count_at, 0)
            join_parts(workspace, out, out_strides, b, x, first, parts, T, DV, acc.shape[1], GROUP, BLOCK_M, BLOCK_T, BLOCK_R,
                       ROWS, wg, WARPGROUPS)


@gluon.jit
def attend_part(wg: gl.constexpr, tensors, b_q, rings, bars, use, line, part, item, before, count, T, S, items, FEW, env,
                D: gl.constexpr, DV: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
                BLOCK_N: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """`count` key tiles of an item, those after the first `before`, which stand in the rings from `use` on."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, rings[1].shape[4], 16])
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    b = item // items
    x = item - b * items
    start = uniform(keys_of(line, b)[0])
    fill_queries(b_q, tensors[0], tensors[1], b, x, T, wg, D, GROUP, BLOCK_M, BLOCK_T)
    h, i, _m = rows_of(x, wg * 64, T, GROUP, BLOCK_M, BLOCK_T, 64, gl.SliceLayout(1, s_layout))
    lo, hi = hull(b, h, i, S, env)
    span = (uniform(least(gl.where(lo < hi, lo, S))) if HAS_LO else start, uniform(most(gl.where(lo < hi, hi, 0))))
    acc, m, l = attend_tiles(b_q, rings, bars, use, start + before * BLOCK_N, count, (b, h, i), lo, hi, span, env, STAGES,
                             BLOCK_N)
    first, parts = parts_of(line, item, items, FEW)
    first, parts = uniform(first), uniform(parts)
    if HAS_SINK:
        a = gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, s_layout), 1)
        m, l, shrink = join_sink(m, l, gl.where(part == first, a, float("-inf")))
        acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
    acc = acc * gl.convert_layout(1.0 / gl.where(l == 0.0, 1.0, l), o_rows)[:, None]
    lse = gl.convert_layout(m + gl.log2(l), o_rows)
    finish(wg, tensors, acc, lse, part, item, first, parts, T, items, DV, GROUP, BLOCK_M, BLOCK_T, BLOCK_R, ROWS)


@gluon.jit
def share_of(sizes, env, GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_B: gl.constexpr,
             BLOCK_T: gl.constexpr):
    """What a program has of the line: items of a sequence, the line, its part; its first item, the tiles before its own and
    how many are left; and whether a tile that it asked for early is to be passed over."""
    B, H, T, S, FEW = sizes
    items = row_tiles(T, GROUP, BLOCK_M, BLOCK_T) * (H // GROUP)
    line = divide(B, T, S, items, FEW, env, BLOCK_N, BLOCK_B, BLOCK_T)
    part = gl.program_id(0)
    item, before, left = keys_of_part(line, part, items, B, FEW)
    item, before, left = uniform(item), uniform(before), uniform(left)
    use = uniform((asked_early(part, B, items, FEW) & (line[4] == 0)).to(gl.int32))
    return items, line, part, item, before, left, use


@gluon.jit
def consume(wg: gl.constexpr, tensors, b_q, rings, bars, sizes, env, D: gl.constexpr, DV: gl.constexpr,
            GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
            BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of the items of its part."""
    _B, _H, T, S, FEW = sizes
    items, line, part, item, before, left, use = share_of(sizes, env, GROUP, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)
    if use > 0:
        pass_over(bars)
    while left > 0:
        count = gl.minimum(uniform(keys_of(line, item // items)[1]) - before, left)
        attend_part(wg, tensors, b_q.index(wg), rings, bars, use, line, part, item, before, count, T, S, items, FEW, env, D, DV,
                    GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_T, BLOCK_R, ROWS)
        use += count
        left -= count
        item += 1
        before = 0
