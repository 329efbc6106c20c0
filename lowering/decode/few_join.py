"""acc = sum_w 2^(m_w - M) acc_w, M = max_w m_w: warps and groups that had keys of an item each, joined, and the item finished

The four warps of a group by reductions; the other groups leave theirs in shared memory for the first, which stores the result.
There are two barriers for each of them, as of a ring of one slot (`hopper/rings.py`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..hooks import HAS_SINK, sink
from ..hopper.rings import ring
from ..hopper.softmax import exp2, join_sink
from ..hopper.tiles import uniform
from .balance import parts_of
from .consumer import finish
from .parts import rows_of

FEW_ROWS = gl.constexpr(16)
GROUPS = gl.constexpr(2)


@gluon.jit
def joining_places(DV: gl.constexpr):
    """Sums [16, DV] and m, l [2, 16] of the groups after the first, and their barriers."""
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    b_acc = gl.allocate_shared_memory(gl.float32, [GROUPS - 1, FEW_ROWS, DV], plain)
    b_ml = gl.allocate_shared_memory(gl.float32, [2 * (GROUPS - 1), FEW_ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    return b_acc, b_ml, ring(GROUPS - 1, 1)


@gluon.jit
def finite(m):
    """m, or 0 for the maximum of nothing, from which nothing can be taken."""
    return gl.where(m == float("-inf"), 0.0, m)


@gluon.jit
def join_warps(sums):
    """acc [16, DV], m, l [16] of a group's sums of even and odd channels [4, 16, DV / 2] and m, l [4, 16]."""
    even, odd, m, l = sums
    DV: gl.constexpr = 2 * even.shape[2]
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [128 // DV, DV // 4], [4, 1], [1, 0])
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    top = gl.max(m, 0)
    by = exp2(m - finite(top)[None, :])                                                        # [4, 16]
    l = gl.convert_layout(gl.sum(l * by, 0), rows)
    acc = gl.join(gl.sum(even * by[:, :, None], 0), gl.sum(odd * by[:, :, None], 0))
    return gl.convert_layout(gl.reshape(acc, [FEW_ROWS, DV]), layout), gl.convert_layout(top, rows), l


@gluon.jit
def leave(g: gl.constexpr, joining, nth, acc, m, l):
    """What a group after the first has of the nth item."""
    b_acc, b_ml, bars = joining
    mbarrier.wait(bars[1].index(g - 1), nth % 2 ^ 1)
    b_acc.index(g - 1).store(acc)
    b_ml.index(2 * g - 2).store(m)
    b_ml.index(2 * g - 1).store(l)
    mbarrier.arrive(bars[0].index(g - 1))


@gluon.jit
def fetch(g: gl.constexpr, joining, nth, acc, m, l):
    """acc, m, l with those that group g left."""
    b_acc, b_ml, bars = joining
    rows: gl.constexpr = m.type.layout
    mbarrier.wait(bars[0].index(g - 1), nth % 2)
    other = b_acc.index(g - 1).load(acc.type.layout)
    other_m, other_l = b_ml.index(2 * g - 2).load(rows), b_ml.index(2 * g - 1).load(rows)
    mbarrier.arrive(bars[1].index(g - 1))
    top = gl.maximum(m, other_m)
    by, other_by = exp2(m - finite(top)), exp2(other_m - finite(top))
    return acc * by[:, None] + other * other_by[:, None], top, l * by + other_l * other_by


@gluon.jit
def finish_few(g: gl.constexpr, tensors, sums, joining, nth, line, part, item, T, items, FEW, env, DV: gl.constexpr,
               GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """The first group joins the others' sums to its own and stores the item, as `consumer.finish`; they leave theirs."""
    acc, m, l = join_warps(sums)
    if g > 0:
        leave(g, joining, nth, acc, m, l)
    else:
        for other in gl.static_range(1, GROUPS):
            acc, m, l = fetch(other, joining, nth, acc, m, l)
        first, parts = parts_of(line, item, items, FEW)
        first, parts = uniform(first), uniform(parts)
        if HAS_SINK:
            b = item // items
            h, i, _m = rows_of(item - b * items, 0, T, GROUP, BLOCK_M, BLOCK_T, FEW_ROWS, m.type.layout)
            a = gl.max(sink(b, h, i, env) + gl.zeros([FEW_ROWS, 1], gl.float32, acc.type.layout), 1)
            m, l, shrink = join_sink(m, l, gl.where(part == first, a, float("-inf")))
            acc = acc * shrink[:, None]
        acc = acc * (1.0 / gl.where(l == 0.0, 1.0, l))[:, None]
        finish(0, tensors, acc, m + gl.log2(l), part, item, first, parts, T, items, DV, GROUP, BLOCK_M, BLOCK_T, BLOCK_R, ROWS)
