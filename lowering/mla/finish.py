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
from .rows import lane_of, rows_at, told

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
        m, l, scale = with_sink(m, l, a, message)
    return m, l, scale


@gluon.jit
def with_sink(m, l, a, message):
    """m, l and the factor of the sums [M], with the sink of logit a [M], which goes with part 0."""
    m, l, shrink = join_sink(m, l, gl.where(told(message, 10) == 0, a, float("-inf")))
    return m, l, shrink / gl.where(l == 0.0, 1.0, l)


@gluon.jit
def row_of(slot, sizes, M: gl.constexpr, BLOCK_H: gl.constexpr):
    """Where the rows of this block lie in a slot of the workspace."""
    lane, lanes = lane_of(sizes, BLOCK_H)
    return (slot * lanes + lane) * M


@gluon.jit
def leave(w: gl.constexpr, x, place, slot, queries, sizes, to, BLOCK_H: gl.constexpr):
    """Columns w * HALF and on of results x [M, HALF] are on their way to `out` or to a slot."""
    out, workspace, _lse, _cuts = to
    M: gl.constexpr = x.shape[0]
    HALF: gl.constexpr = x.shape[1]
    b, h0, i0 = place
    if slot < 0:
        queries[0].index(w).reshape([M, HALF]).store(x.to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [b, i0, h0, w * HALF], queries[0].index(w))
    if workspace is not None:  # noqa: SIM102 (one is of the compiler, one of the launch)
        if slot >= 0:
            room = queries[0].index(w).reshape([M, HALF])._reinterpret(queries[0].dtype, [M, HALF], workspace.layout)
            room.store(x.to(room.dtype))
            fence_async_shared()
            at = row_of(slot, sizes, M, BLOCK_H)
            tma.async_copy_shared_to_global(workspace, [at, w * HALF], room.slice(0, workspace.block_type.shape[0], 0))


@gluon.jit
def note_lse(m, l, slot, sizes, to, BLOCK_H: gl.constexpr):
    """The log2-sum-exp [M] of the rows of a part."""
    if to[1] is not None:  # noqa: SIM102 (one is of the compiler, one of the launch)
        if slot >= 0:
            at = row_of(slot, sizes, m.shape[0], BLOCK_H)
            gl.store(to[2] + at + gl.arange(0, m.shape[0], m.type.layout), m + gl.log2(l))


@gluon.jit
def finish(w: gl.constexpr, acc, m, l, place, message, queries, small, bars, turn, sizes, env, to,
           R: gl.constexpr, BLOCK_H: gl.constexpr):
    """Stores columns w * HALF and on of sums acc [64, HALF], whose rows have the maximum m [64] and the denominator l [64]."""
    layout: gl.constexpr = acc.type.layout
    m, l, scale = normaliser(w, m, l, place, message, small, bars, turn, sizes, env, BLOCK_H)
    slot = told(message, 9)
    leave(w, acc * gl.convert_layout(scale, gl.SliceLayout(1, layout))[:, None], place, slot, queries, sizes, to, BLOCK_H)
    if w == 0:
        note_lse(m, l, slot, sizes, to, BLOCK_H)
    tma.store_wait(0)
    mbarrier.arrive(bars[2].index(FREE))
