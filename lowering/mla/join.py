"""out = sum_p 2^(lse_p - LSE) parts_p,   LSE = m + log2 sum_p 2^(lse_p - m),   m = max_p lse_p        in the same launch

Every block that has a part of an item takes an equal share of its rows and joins them, once all parts are there; each half
of the columns by the warpgroups that own it. Blocks wait for each other: all of them must run at once (a cooperative launch).
Parts are joined in the order of their keys, the same bits every time. A row that no part saw is 0.
Workspace: parts [2 * blocks, 64, R], each normalised, then lse [2 halves, 2 * blocks, 64] in units of log2, -inf where a part
saw no key; float32. A block writes at most two: the end of an item (slot 2 * block) and the beginning of one (2 * block + 1).
Counters [items, lanes, 2 halves] int32, 0 before and after: each part counts once when it is there and once when its share is
joined, and the last sets it back.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .line import lane_of
from .warpgroups import CHOSEN, ROWS


@gluon.jit
def slot_of(block, part):
    """Where `block` keeps its part."""
    return block * 2 + (part == 0).to(gl.int32)


@gluon.jit
def counter_of(counters, item, half: gl.constexpr, sizes):
    lane, lanes = lane_of(sizes)
    return counters + (item * lanes + lane) * 2 + half


@gluon.jit
def keep_part(workspace, half: gl.constexpr, part, acc, m, l, m_row, R: gl.constexpr):
    """acc [64, HALF], normalised, and the statistics [64] of its rows, where m_row [64, 1], into this block's slot."""
    C0: gl.constexpr = half * acc.shape[1]
    layout: gl.constexpr = acc.type.layout
    slot = slot_of(gl.program_id(0), part)
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    o_d = C0 + gl.arange(0, acc.shape[1], gl.SliceLayout(0, layout))
    at = slot.to(gl.int64) * ROWS + row
    gl.store(workspace + at[:, None] * R + o_d[None, :], acc, mask=m_row & (o_d < R)[None, :])
    p_lse = workspace + gl.num_programs(0).to(gl.int64) * (2 * ROWS * R + half * 2 * ROWS)
    o_row = gl.arange(0, ROWS, m.type.layout)
    gl.store(p_lse + slot * ROWS + o_row, m + gl.log2(l))


@gluon.jit
def announce(p_counter):
    tl.debug_barrier()                                              # all threads have stored before one of them counts
    gl.atomic_add(p_counter, 1, sem="release")


@gluon.jit
def join(to, half: gl.constexpr, segment, sizes, R: gl.constexpr, HALF: gl.constexpr, BLOCK_ROWS: gl.constexpr):
    """This block's share of the rows of the item of `segment`, in columns half * HALF and on."""
    item, part, parts, holder, _begin, _last, _first, _count = segment
    _B, H, T, _S, _K, _SPLITS, _EACH, _STEP = sizes
    out, strides, workspace, counters = to
    C0: gl.constexpr = half * HALF
    PARTS: gl.constexpr = 16 // BLOCK_ROWS
    layout: gl.constexpr = gl.BlockedLayout([PARTS, BLOCK_ROWS, 2], [1, 1, 32], [1, 1, 4], [2, 1, 0])
    two: gl.constexpr = gl.SliceLayout(0, layout)                                             # [BLOCK_ROWS, HALF]
    lane, lanes = lane_of(sizes)
    rows = gl.minimum((H if CHOSEN else H * T) - lane * ROWS, ROWS)
    p_counter = counter_of(counters, item, half, sizes)
    while gl.atomic_add(p_counter, 0, sem="acquire") < parts:
        pass
    each = (rows + parts - 1) // parts
    end = gl.minimum(rows, part * each + each)
    o_d = gl.arange(0, HALF, gl.SliceLayout(0, two))                                          # [HALF]
    m_d = C0 + o_d < R
    o_c = C0 + gl.arange(0, HALF, gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    p_lse = workspace + gl.num_programs(0).to(gl.int64) * (2 * ROWS * R + half * 2 * ROWS)
    for r0 in range(part * each, end, BLOCK_ROWS):
        r = r0 + gl.arange(0, BLOCK_ROWS, gl.SliceLayout(1, two))
        acc = gl.zeros([BLOCK_ROWS, HALF], gl.float32, two)
        m = gl.full([BLOCK_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, two))
        l = gl.zeros([BLOCK_ROWS], gl.float32, gl.SliceLayout(1, two))
        for p0 in range(0, parts, PARTS):
            p = p0 + gl.arange(0, PARTS, gl.SliceLayout(1, gl.SliceLayout(2, layout)))
            r_p = r0 + gl.arange(0, BLOCK_ROWS, gl.SliceLayout(0, gl.SliceLayout(2, layout)))
            seen = (p < parts)[:, None] & (r_p < end)[None, :]                                 # [PARTS, BLOCK_ROWS]
            at = slot_of((holder + p) * lanes + lane, p)[:, None] * ROWS + r_p[None, :]
            # past the first-level cache: other processors wrote them in this launch
            lse = gl.load(p_lse + at, mask=seen, other=float("-inf"), cache_modifier=".cg")
            p_part = workspace + at.to(gl.int64)[:, :, None] * R + o_c[None, None, :]
            x = gl.load(p_part, mask=seen[:, :, None] & (o_c < R)[None, None, :], other=0.0, cache_modifier=".cg")
            m_new = gl.maximum(m, gl.convert_layout(gl.max(lse, 0), m.type.layout))
            shift = gl.where(m_new == float("-inf"), 0.0, m_new)
            w = gl.exp2(lse - gl.convert_layout(shift, gl.SliceLayout(0, lse.type.layout))[None, :])
            shrink = gl.exp2(m - shift)
            acc = acc * shrink[:, None] + gl.sum(w[:, :, None] * x, 0)
            l = l * shrink + gl.convert_layout(gl.sum(w, 0), l.type.layout)
            m = m_new
        row = lane * ROWS + r
        o = acc / gl.where(l == 0.0, 1.0, l)[:, None]
        b = item
        h = row // T
        i = row % T
        if CHOSEN:
            b = item // T
            h = row
            i = row * 0 + item % T
        p_out = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
        gl.store(p_out[:, None] + (C0 + o_d)[None, :], o.to(out.dtype.element_ty), mask=(r < end)[:, None] & m_d[None, :])
    if gl.atomic_add(p_counter, 1, sem="acq_rel") == 2 * parts - 1:
        gl.store(p_counter, 0)
