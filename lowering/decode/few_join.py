"""acc = sum_w 2^(m_w - M) acc_w, M = max_w m_w: what the warps of all groups have of an item, joined, and the item finished

Each warp leaves its sums in shared memory, and the first group adds them up and stores the result while the others go on. A
group's place has two barriers, as a ring of one slot has (`hopper/rings.py`).
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
WARPS = gl.constexpr(4)
GROUPS = gl.constexpr(2)


@gluon.jit
def joining_places(C: gl.constexpr):
    """Of each group: sums of even and of odd channels [4, 16, C], m and l [4, 16], and barriers."""
    layout: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [2, 1, 0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    b_acc = gl.allocate_shared_memory(gl.float32, [2 * GROUPS, WARPS, FEW_ROWS, C], layout)
    b_ml = gl.allocate_shared_memory(gl.float32, [2 * GROUPS, WARPS, FEW_ROWS], plain)
    return b_acc, b_ml, ring(GROUPS, 1)


@gluon.jit
def leave(g: gl.constexpr, joining, nth, even, odd, m, l):
    """What the warps of a group have of the nth item."""
    b_acc, b_ml, bars = joining
    mbarrier.wait(bars[1].index(g), nth % 2 ^ 1)
    b_acc.index(2 * g).store(even)
    b_acc.index(2 * g + 1).store(odd)
    b_ml.index(2 * g).store(m)
    b_ml.index(2 * g + 1).store(l)
    mbarrier.arrive(bars[0].index(g))


@gluon.jit
def add(g: gl.constexpr, joining, nth, even, odd, m, l):
    """even, odd [16, C], m, l [16] and what group g has left."""
    b_acc, b_ml, bars = joining
    C: gl.constexpr = even.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([4, 1, 4], [1, 128 // C, C // 4], [1, 4, 1], [2, 1, 0])
    rows: gl.constexpr = gl.SliceLayout(2, layout)
    mbarrier.wait(bars[0].index(g), nth % 2)
    m_w, l_w = b_ml.index(2 * g).load(rows), b_ml.index(2 * g + 1).load(rows)                  # [4, 16]
    even_w, odd_w = b_acc.index(2 * g).load(layout), b_acc.index(2 * g + 1).load(layout)       # [4, 16, C]
    mbarrier.arrive(bars[1].index(g))
    top = gl.maximum(m, gl.max(m_w, 0))
    shift = gl.where(top == float("-inf"), 0.0, top)
    by_w = exp2(m_w - shift[None, :])
    l = l * exp2(m - shift) + gl.sum(l_w * by_w, 0)
    by = gl.convert_layout(exp2(m - shift), gl.SliceLayout(1, even.type.layout))
    even = even * by[:, None] + gl.sum(even_w * by_w[:, :, None], 0)
    odd = odd * by[:, None] + gl.sum(odd_w * by_w[:, :, None], 0)
    return even, odd, top, l


@gluon.jit
def join_all(joining, nth, C: gl.constexpr):
    """acc [16, 2 C], m, l [16] of the nth item."""
    layout: gl.constexpr = gl.BlockedLayout([4, 1, 4], [1, 128 // C, C // 4], [1, 4, 1], [2, 1, 0])
    each: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, layout))
    even = gl.zeros([FEW_ROWS, C], gl.float32, gl.SliceLayout(0, layout))
    odd = gl.zeros([FEW_ROWS, C], gl.float32, gl.SliceLayout(0, layout))
    m = gl.full([FEW_ROWS], float("-inf"), gl.float32, each)
    l = gl.zeros([FEW_ROWS], gl.float32, each)
    for g in gl.static_range(GROUPS):
        even, odd, m, l = add(g, joining, nth, even, odd, m, l)
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [128 // C, C // 4], [4, 1], [1, 0])
    rows: gl.constexpr = gl.SliceLayout(1, flat)
    acc = gl.convert_layout(gl.reshape(gl.join(even, odd), [FEW_ROWS, 2 * C]), flat)
    return acc, gl.convert_layout(m, rows), gl.convert_layout(l, rows)


@gluon.jit
def finish_few(g: gl.constexpr, tensors, sums, joining, nth, line, part, item, T, items, FEW, env, DV: gl.constexpr,
               GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """All groups leave their sums; the first joins them and stores the item, as `consumer.finish`."""
    even, odd, m, l = sums
    leave(g, joining, nth, even, odd, m, l)
    if g == 0:
        acc, m, l = join_all(joining, nth, even.shape[2])
        first, parts = parts_of(line, item, items, FEW)
        first, parts = uniform(first), uniform(parts)
        if HAS_SINK:
            b = item // items
            layout: gl.constexpr = acc.type.layout
            h, i, _m = rows_of(item - b * items, 0, T, GROUP, BLOCK_M, BLOCK_T, FEW_ROWS, gl.SliceLayout(1, layout))
            a = gl.max(sink(b, h, i, env) + gl.zeros([FEW_ROWS, 1], gl.float32, layout), 1)
            m, l, shrink = join_sink(m, l, gl.where(part == first, a, float("-inf")))
            acc = acc * shrink[:, None]
        acc = acc * (1.0 / gl.where(l == 0.0, 1.0, l))[:, None]
        finish(0, tensors, acc, m + gl.log2(l), part, item, first, parts, T, items, DV, GROUP, BLOCK_M, BLOCK_T, BLOCK_R, ROWS)
