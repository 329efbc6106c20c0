"""The two warpgroups that multiply, and exchange their weights: one computes those of even tiles, the other of odd tiles

After FlashMLA's second schedule (DeepSeek, 2025). Each owns 256 columns of the sums and half of the scores; the weights of
a tile go to the other through shared memory, with the maximum they were taken from, so that one running maximum serves both.
A pair of tiles, down the page; products stand in capitals:

    even, left columns                        odd, right columns
    SCORES 0                                  sums of the pair before
    weights 0 -> odd                          SCORES 1, begun after scores 0
    VALUES 0 (weights in registers)           VALUES 0 (from shared memory); weights 1 meanwhile -> even
    VALUES 1 (from shared memory)             VALUES 1 (weights in registers)

The scores of one run under the softmax of the other. Tiles come from the last key to the first, two slots of BLOCK_N keys;
a slot's left columns, rope and right columns are filled and freed each for itself: left columns of tile 0 are on their way
again while three products still run. The weights of odd tiles lie where the queries' rope part was, which stays in registers.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..hooks import HAS_LO, HAS_SINK, score, sink
from ..hopper.softmax import SCALE, exp2, join_sink
from ..hopper.tiles import hull, least, most
from .join import announce, counter_of, join, keep_part
from .line import plan_of, rows_of, segment_of
from .warpgroups import CHOSEN, clean, flat, token_at

READY = gl.constexpr(0)
TURN = gl.constexpr(2)
WEIGHTS = gl.constexpr(3)
TAKEN = gl.constexpr(5)
DONE = gl.constexpr(7)
"""Barriers between the two: queries of warpgroup w are there; scores of even tiles done; weights of w there, and taken;
denominator of w there. They lie apart from those of pieces, full and empty at 2 * piece + slot for left, rope and right: where
a warpgroup waits and arrives in one array, Triton has all its threads meet in between."""


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
    s = gl.zeros([64, N], gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16]))
    arrived(bars[0].index(at), phase)
    s = warpgroup_mma(queries[0].index(z), flat(left, at + z).permute([1, 0]), s, use_acc=False, is_async=True)
    arrived(bars[0].index(2 + at), phase)
    s = warpgroup_mma(b_r, flat(rope, at + z).permute([1, 0]), s, is_async=True)
    arrived(bars[0].index(4 + at), phase)
    s = warpgroup_mma(queries[0].index(1 + z), flat(right, at + z).permute([1, 0]), s, is_async=True)
    return warpgroup_mma_wait(0, [s])


@gluon.jit
def tokens_of(source, rows, place, last):
    """Keys [N] at positions `place` [N] of this block's row of tokens; the positions themselves where all keys are meant."""
    if CHOSEN:
        b, _h, i = rows
        return token_at(source[0], source[1], b, gl.max(gl.max(i, 1), 0), place, last)
    else:
        return place


@gluon.jit
def masked(s, token, sizes, rows, bounds, j0, last, env):
    """a [64, N]: with SCALE, s; else the spec's score of s. -inf where a row does not see keys `token` [N].

    bounds = (lo, hi, most of lo, least of hi): a tile that all rows see whole is not asked.
    """
    lo, hi, above, below = bounds
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
        a = gl.where(seen[None, :] & (j < hi), a, float("-inf"))
        if HAS_LO:
            a = gl.where(j >= lo, a, float("-inf"))
    else:
        if (j0 + s.shape[1] > below) | (j0 < above):
            a = gl.where(j < hi, a, float("-inf"))
            if HAS_LO:
                a = gl.where(j >= lo, a, float("-inf"))
    return a


@gluon.jit
def weigh(a, m):
    """p [64, N], the new maximum m [64] and by what the sums so far shrink [64]; with SCALE, the logit is SCALE * a."""
    highest = gl.max(a, 1)                                                                     # [64]
    if SCALE != 0.0:
        highest = highest * SCALE
    m_new = gl.maximum(m, highest)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    if SCALE != 0.0:
        p = exp2(a * SCALE - shift[:, None])                                                   # [64, N]
    else:
        p = exp2(a - shift[:, None])
    return p, m_new, exp2(m - shift)


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


@gluon.jit
def bounds_of(sizes, rows, last, env):
    """lo and hi [64, 1] of each row, the largest lo, the smallest hi; of positions, not of chosen tokens, hi <= last."""
    b, h, i = rows
    lo, hi = hull(b, h, i, sizes[3], env)
    if not CHOSEN:
        hi = gl.minimum(hi, last)
    below = least(hi)
    above = below * 0
    if HAS_LO:
        above = most(lo)
    return lo, hi, above, below


@gluon.jit
def fill(buf, x, strides, item, sizes, c0: gl.constexpr, D: gl.constexpr):
    """Columns c0 .. c0 + W of x[b, h, i, :D], this block's rows of an item, into buf [64, W]."""
    W: gl.constexpr = buf.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
    b, h, i, _m_row = rows_of(item, sizes, layout)
    o_d = c0 + gl.arange(0, W, gl.SliceLayout(0, layout))[None, :]
    p = x + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
    buf.store(gl.load(p + o_d, mask=o_d < D, other=0.0))
    fence_async_shared()


@gluon.jit
def store_out(out, strides, acc, rows, m_row, c0: gl.constexpr, R: gl.constexpr):
    """Columns c0 .. c0 + W of rows b, h, i, where m_row [64, 1]; acc [64, W]."""
    b, h, i = rows
    o_d = c0 + gl.arange(0, acc.shape[1], gl.SliceLayout(0, acc.type.layout))[None, :]
    p = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
    gl.store(p + o_d, acc.to(out.dtype.element_ty), mask=m_row & (o_d < R))


@gluon.jit
def finish(w: gl.constexpr, acc, m, l, turn, small, bars, segment, sizes, env, to, R: gl.constexpr, LINE: gl.constexpr):
    """Joins what both have counted of the denominator, and stores the columns of warpgroup w: out, or a part."""
    item, part, parts, _holder, _begin, _last, _first, _count = segment
    out, strides, workspace, counters = to
    C0: gl.constexpr = w * acc.shape[1]
    o_layout: gl.constexpr = acc.type.layout
    s_layout: gl.constexpr = l.type.layout.parent
    small.index(4 + w).store(l)
    mbarrier.arrive(bars[2].index(DONE + w))
    mbarrier.wait(bars[2].index(DONE + 1 - w), turn % 2)
    l = l + small.index(5 - w).load(l.type.layout)
    scale = 1.0 / gl.where(l == 0.0, 1.0, l)
    if HAS_SINK:
        b, h, i, _m_row = rows_of(item, sizes, s_layout)
        a = gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, s_layout), 1)
        m, l, shrink = join_sink(m, l, gl.where(part == 0, a, float("-inf")))
        scale = shrink / gl.where(l == 0.0, 1.0, l)
    acc = acc * gl.convert_layout(scale, gl.SliceLayout(1, o_layout))[:, None]
    b, h, i, m_row = rows_of(item, sizes, o_layout)
    if LINE:
        if parts == 1:
            store_out(out, strides, acc, (b, h, i), m_row, C0, R)
        else:
            keep_part(workspace, w, part, acc, m, l, m_row, R)
            announce(counter_of(counters, item, w, sizes))
    elif workspace is None:
        store_out(out, strides, acc, (b, h, i), m_row, C0, R)
    else:
        B, H, T, _S, _K, _SPLITS, _EACH, _STEP = sizes
        at = ((part.to(gl.int64) * B + b) * H + h) * T + i                                     # [64, 1]
        o_d = C0 + gl.arange(0, acc.shape[1], gl.SliceLayout(0, o_layout))[None, :]
        gl.store(workspace + at * R + o_d, acc, mask=m_row & (o_d < R))
        if w == 0:
            b, h, i, m_row = rows_of(item, sizes, s_layout)
            at = ((part.to(gl.int64) * B + b) * H + h) * T + i
            gl.store(counters + at, gl.expand_dims(m + gl.log2(l), 1), mask=m_row)


@gluon.jit
def join_parts(w: gl.constexpr, plan, sizes, env, to, R: gl.constexpr, N: gl.constexpr, HALF: gl.constexpr, LINE: gl.constexpr,
               BLOCK_T: gl.constexpr, BLOCK_ROWS: gl.constexpr):
    """The first and the last item of this block may have parts."""
    _at, _stop, _each, _whole, first, beyond = plan
    for ends in range(gl.minimum(beyond - first, 2)):
        segment = segment_of(first if ends == 0 else beyond - 1, plan, sizes, env, N, LINE, BLOCK_T)
        if segment[2] > 1:
            join(to, w, segment, sizes, R, HALF, BLOCK_ROWS)


@gluon.jit
def even(tensors, source, queries, rings, bars, b_p, small, sizes, env, to, R: gl.constexpr, P: gl.constexpr,
         LINE: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_ROWS: gl.constexpr):
    """Scores and weights of tiles 0, 2, ...; sums of the left columns."""
    N: gl.constexpr = rings[0].shape[2]
    HALF: gl.constexpr = rings[0].shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    o_n = gl.arange(0, N, gl.SliceLayout(0, s_layout))
    plan = plan_of(sizes, env, N, LINE, BLOCK_T)
    evens = plan[4] * 0                                             # tiles so far: the use of each slot
    odds = evens
    for item in range(plan[4], plan[5]):
        turn = item - plan[4]
        fill(queries[0].index(0), tensors[0], tensors[1], item, sizes, 0, R)
        mbarrier.arrive(bars[2].index(READY))
        segment = segment_of(item, plan, sizes, env, N, LINE, BLOCK_T)
        _item, _part, _parts, _holder, begin, last, first, count = segment
        b, h, i, _m_row = rows_of(item, sizes, s_layout)
        rows = (b, h, i)
        bounds = bounds_of(sizes, rows, last, env)
        m = gl.full([64], float("-inf"), gl.float32, s_rows)
        l = gl.zeros([64], gl.float32, s_rows)
        acc = gl.zeros([64, HALF], gl.float32, o_layout)
        mbarrier.wait(bars[2].index(READY + 1), turn % 2)
        b_r = queries[1].load(gl.DotOperandLayout(0, s_layout, 2))                             # [64, P]
        mbarrier.arrive(bars[2].index(TAKEN + 1), pred=count > 1)
        mbarrier.wait(bars[2].index(READY), turn % 2)
        for u in range((count + 1) // 2):
            z = u >> 24
            phase = (evens + u) % 2
            j0 = first + (count - 1 - 2 * u) * N
            token = tokens_of(source, rows, j0 + o_n, last)
            s = scores(queries, b_r, rings, bars, 0, z, phase)
            mbarrier.arrive(bars[2].index(TURN), pred=2 * u + 1 < count)
            mbarrier.arrive(bars[1].index(2))
            a = masked(s, token, sizes, rows, bounds, j0, last, env)
            weights, m, shrink = weigh(a, m)
            p = weights.to(rings[0].dtype)
            mbarrier.wait(bars[2].index(TAKEN), phase ^ 1)
            give(0, b_p, small, bars, p, m, shrink)
            acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
            p_registers = gl.convert_layout(p, gl.DotOperandLayout(0, o_layout, 2))
            o = begin_values(p_registers, rings, 0, bars, 0, z, phase, j0, (begin, last), acc)
            l = l * shrink + gl.sum(weights, 1)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[1].index(0))
            if 2 * u + 1 < count:
                phase = (odds + u) % 2
                mbarrier.wait(bars[2].index(WEIGHTS + 1), phase)
                m = small.index(2).load(s_rows)
                l = l * small.index(3).load(s_rows)
                acc = acc * small.index(3).load(o_rows)[:, None]
                o = begin_values(b_p[1], rings, 0, bars, 1, z, phase, j0 - N, (begin, last), acc)
                acc = warpgroup_mma_wait(0, [o])
                mbarrier.arrive(bars[2].index(TAKEN + 1), pred=2 * u + 3 < count)
                mbarrier.arrive(bars[1].index(1))
        evens += (count + 1) // 2
        odds += count // 2
        finish(0, acc, m, l, turn, small, bars, segment, sizes, env, to, R, LINE)
    if LINE:
        join_parts(0, plan, sizes, env, to, R, N, HALF, LINE, BLOCK_T, BLOCK_ROWS)


@gluon.jit
def odd(tensors, source, queries, rings, bars, b_p, small, sizes, env, to, R: gl.constexpr, P: gl.constexpr,
        LINE: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_ROWS: gl.constexpr):
    """Scores and weights of tiles 1, 3, ...; sums of the right columns."""
    N: gl.constexpr = rings[2].shape[2]
    HALF: gl.constexpr = rings[2].shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    o_n = gl.arange(0, N, gl.SliceLayout(0, s_layout))
    plan = plan_of(sizes, env, N, LINE, BLOCK_T)
    evens = plan[4] * 0
    odds = evens
    for item in range(plan[4], plan[5]):
        turn = item - plan[4]
        fill(queries[1], tensors[2], tensors[3], item, sizes, 0, P)
        fill(queries[0].index(1), tensors[0], tensors[1], item, sizes, HALF, R)
        mbarrier.arrive(bars[2].index(READY + 1))
        segment = segment_of(item, plan, sizes, env, N, LINE, BLOCK_T)
        _item, _part, _parts, _holder, begin, last, first, count = segment
        b, h, i, _m_row = rows_of(item, sizes, s_layout)
        rows = (b, h, i)
        bounds = bounds_of(sizes, rows, last, env)
        m = gl.full([64], float("-inf"), gl.float32, s_rows)
        l = gl.zeros([64], gl.float32, s_rows)
        acc = gl.zeros([64, HALF], gl.float32, o_layout)
        mbarrier.wait(bars[2].index(READY + 1), turn % 2)
        b_r = queries[1].load(gl.DotOperandLayout(0, s_layout, 2))                             # [64, P]
        mbarrier.wait(bars[2].index(READY), turn % 2)
        for u in range(count // 2):
            z = u >> 24
            phase = (odds + u) % 2
            phase_0 = (evens + u) % 2
            j0 = first + (count - 2 - 2 * u) * N
            token = tokens_of(source, rows, j0 + o_n, last)
            mbarrier.wait(bars[2].index(TURN), phase)
            s = scores(queries, b_r, rings, bars, 1, z, phase)
            mbarrier.arrive(bars[1].index(3))
            a = masked(s, token, sizes, rows, bounds, j0, last, env)
            mbarrier.wait(bars[2].index(WEIGHTS), phase_0)
            m = small.index(0).load(s_rows)
            l = l * small.index(1).load(s_rows)
            acc = acc * small.index(1).load(o_rows)[:, None]
            o = begin_values(b_p[0], rings, 2, bars, 0, z, phase_0, j0 + N, (begin, last), acc)
            weights, m, shrink = weigh(a, m)
            p = weights.to(rings[2].dtype)
            mbarrier.wait(bars[2].index(TAKEN + 1), phase)
            give(1, b_p, small, bars, p, m, shrink)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[2].index(TAKEN))
            mbarrier.arrive(bars[1].index(4))
            acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
            p_registers = gl.convert_layout(p, gl.DotOperandLayout(0, o_layout, 2))
            o = begin_values(p_registers, rings, 2, bars, 1, z, phase, j0, (begin, last), acc)
            l = l * shrink + gl.sum(weights, 1)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[1].index(5))
        if count % 2 == 1:
            phase_0 = (evens + count // 2) % 2
            mbarrier.wait(bars[2].index(WEIGHTS), phase_0)
            m = small.index(0).load(s_rows)
            l = l * small.index(1).load(s_rows)
            acc = acc * small.index(1).load(o_rows)[:, None]
            o = begin_values(b_p[0], rings, 2, bars, 0, count >> 24, phase_0, first, (begin, last), acc)
            acc = warpgroup_mma_wait(0, [o])
            mbarrier.arrive(bars[2].index(TAKEN))
            mbarrier.arrive(bars[1].index(4))
        evens += (count + 1) // 2
        odds += count // 2
        finish(1, acc, m, l, turn, small, bars, segment, sizes, env, to, R, LINE)
    if LINE:
        join_parts(1, plan, sizes, env, to, R, N, HALF, LINE, BLOCK_T, BLOCK_ROWS)


@gluon.jit
def pieces(BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr, kind: gl.constexpr):
    """Two slots of latents: left columns, rope, right columns."""
    wide: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BLOCK_N, HALF], kind)
    narrow: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BLOCK_N, BLOCK_P], kind)
    return (gl.allocate_shared_memory(kind, [2, 1, BLOCK_N, HALF], wide),
            gl.allocate_shared_memory(kind, [2, 1, BLOCK_N, BLOCK_P], narrow),
            gl.allocate_shared_memory(kind, [2, 1, BLOCK_N, HALF], wide))


@gluon.jit
def common(kind: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr, ARRIVALS: gl.constexpr):
    """Shared memory of both warpgroups: queries in left columns, right columns and rope; barriers; weights; statistics."""
    half: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, HALF], kind)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_N], kind)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    queries = (gl.allocate_shared_memory(kind, [2, 64, HALF], half), gl.allocate_shared_memory(kind, [64, BLOCK_P], square))
    b_p = gl.allocate_shared_memory(kind, [64, BLOCK_N], square)
    small = gl.allocate_shared_memory(gl.float32, [8, 64], plain)
    full = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())
    between = gl.allocate_shared_memory(gl.int64, [16, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(6):
        mbarrier.init(full.index(at), count=ARRIVALS)
        mbarrier.init(empty.index(at), count=1)
    for at in gl.static_range(9):
        mbarrier.init(between.index(at), count=1)
    fence_async_shared()
    return queries, (full, empty, between), (b_p, queries[1]), small
