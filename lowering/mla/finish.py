"""out = acc / l, or a part of it and its log2-sum-exp: what a warpgroup of the exchange kernels does with its sums

They go through the memory of the queries, which are not needed any more, to TMA: as they lie in registers, rows would be
written 8 bytes a thread at a time. A part is normalised, a mean of latents as the result is, and rounded as that: joined with
weights w that add up to 1, parts are off by sqrt(sum w^2) of one rounding, never more than the result is by its own.
Workspace: parts [slots * lanes * 64, R] of out's dtype, a descriptor of boxes of as many rows as there are and HALF columns;
lse [slots * lanes, 64] in units of log2, -inf where a part saw no key.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..hooks import HAS_SINK, sink
from ..hopper.softmax import join_sink
from .rows import ROWS, lane_of, rows_at, told

DONE = gl.constexpr(7)
FREE = gl.constexpr(9)
"""Barriers: denominator of warpgroup w there; both through with the queries and what the warpgroups were told."""


@gluon.jit
def normaliser(w: gl.constexpr, m, l, place, message, small, bars, turn, sizes, env, BLOCK_H: gl.constexpr):
    """m, l and the factor of the sums [64]: both warpgroups' denominators joined, and the sink with part 0."""
    layout: gl.constexpr = l.type.layout
    small.index(4 + w).store(l)
    mbarrier.arrive(bars[2].index(DONE + w))
    mbarrier.wait(bars[2].index(DONE + 1 - w), turn % 2)
    l = l + small.index(5 - w).load(layout)
    scale = 1.0 / gl.where(l == 0.0, 1.0, l)
    if HAS_SINK:
        b, h0, i0 = place
        matrix: gl.constexpr = layout.parent
        h, i, _m_row = rows_at(h0, i0, sizes, BLOCK_H, matrix)
        a = gl.max(sink(b, h, i, env) + gl.zeros([64, 1], gl.float32, matrix), 1)
        m, l, shrink = join_sink(m, l, gl.where(told(message, 10) == 0, a, float("-inf")))
        scale = shrink / gl.where(l == 0.0, 1.0, l)
    return m, l, scale


@gluon.jit
def finish(w: gl.constexpr, acc, m, l, place, message, queries, small, bars, turn, sizes, env, to,
           R: gl.constexpr, BLOCK_H: gl.constexpr):
    """Stores columns w * HALF and on of sums acc [64, HALF], whose rows have the maximum m [64] and the denominator l [64]."""
    out, workspace, lse, _cuts = to
    HALF: gl.constexpr = acc.shape[1]
    layout: gl.constexpr = acc.type.layout
    m, l, scale = normaliser(w, m, l, place, message, small, bars, turn, sizes, env, BLOCK_H)
    acc = acc * gl.convert_layout(scale, gl.SliceLayout(1, layout))[:, None]
    b, h0, i0 = place
    slot = told(message, 9)
    if slot < 0:
        queries[0].index(w).reshape([ROWS, HALF]).store(acc.to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [b, i0, h0, w * HALF], queries[0].index(w))
        tma.store_wait(0)
    if workspace is not None:  # noqa: SIM102 (one is of the compiler, one of the launch)
        if slot >= 0:
            lane, lanes = lane_of(sizes, BLOCK_H)
            at = (slot * lanes + lane) * ROWS
            room = queries[0].index(w).reshape([ROWS, HALF])._reinterpret(queries[0].dtype, [ROWS, HALF], workspace.layout)
            room.store(acc.to(room.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(workspace, [at, w * HALF], room.slice(0, workspace.block_type.shape[0], 0))
            tma.store_wait(0)
            if w == 0:
                gl.store(lse + at + gl.arange(0, ROWS, m.type.layout), m + gl.log2(l))
    mbarrier.arrive(bars[2].index(FREE))
