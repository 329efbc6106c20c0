"""out = sum_p 2^(lse_p - LSE) parts_p: `merge.py` in Gluon, for the 64 rows of each warpgroup

Workspace: SLOTS x WARPGROUPS slots of float32, each x [ROWS, DV] and then lse [ROWS]. A part of the line writes at most two:
the end of an item that an earlier part began (slot 2p) and the beginning of one (2p + 1).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .balance import row_tiles


@gluon.jit
def rows_of(x, r0, T, GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_T: gl.constexpr, R: gl.constexpr,
            layout: gl.constexpr):
    """Item x of a sequence: rows r0 .. r0 + R of its tile: h, i and whether there is such a row [R, 1]."""
    tiles = row_tiles(T, GROUP, BLOCK_M, BLOCK_T)
    row = (x % tiles * BLOCK_M + r0 + gl.arange(0, R, layout))[:, None]
    r = gl.minimum(row, GROUP * T - 1)                              # rows past the end repeat the last one, unstored
    if BLOCK_T == 1:
        return x // tiles * GROUP + r, r * 0, row < GROUP
    else:
        return x // tiles * GROUP + r // T, r % T, row < GROUP * T


@gluon.jit
def store_rows(out, strides, x, b, h, i, m_row, DV: gl.constexpr):
    """out[b, h, i, :] = x [M, BLOCK_DV] for rows h, i [M, 1] where m_row [M, 1]."""
    o_d = gl.arange(0, x.shape[1], gl.SliceLayout(0, x.type.layout))[None, :]
    p = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
    gl.store(p + o_d, x.to(out.dtype.element_ty), mask=m_row & (o_d < DV))


@gluon.jit
def place(workspace, part, nth, wg: gl.constexpr, WARPGROUPS: gl.constexpr, ROWS: gl.constexpr, DV: gl.constexpr):
    """Where a part of the line, the nth of an item, keeps its sums."""
    return workspace + ((part * 2 + gl.where(nth == 0, 1, 0)) * WARPGROUPS + wg).to(gl.int64) * (ROWS * (DV + 1))


@gluon.jit
def store_part(p, x, lse, m_row, DV: gl.constexpr, ROWS: gl.constexpr):
    """x [M, BLOCK_DV] and lse [M] into the slot at p, where m_row [M, 1]."""
    layout: gl.constexpr = x.type.layout
    o_d = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))[None, :]
    o_r = gl.arange(0, x.shape[0], gl.SliceLayout(1, layout))
    gl.store(p + o_r[:, None] * DV + o_d, x, mask=m_row & (o_d < DV))
    gl.store(p + ROWS * DV + o_r, lse, mask=gl.max(m_row.to(gl.int32), 1) > 0)


@gluon.jit
def merge(workspace, first, parts, r0, rows, layout: gl.constexpr, CHUNK: gl.constexpr, R: gl.constexpr,
          DV: gl.constexpr, BLOCK_DV: gl.constexpr, ROWS: gl.constexpr, wg: gl.constexpr, WARPGROUPS: gl.constexpr):
    """Rows r0 .. r0 + R, of `rows`, of an item that lies in parts first, first + 1, ...: [R, BLOCK_DV]."""
    pairs: gl.constexpr = gl.SliceLayout(2, layout)
    sums: gl.constexpr = gl.SliceLayout(0, layout)
    each: gl.constexpr = gl.SliceLayout(0, pairs)
    o_r = (r0 + gl.arange(0, R, each))[None, :]
    o_d = gl.arange(0, BLOCK_DV, gl.SliceLayout(0, sums))[None, :][None, :, :]
    acc = gl.zeros([R, BLOCK_DV], gl.float32, sums)
    m = gl.full([R], float("-inf"), gl.float32, each)
    total = gl.zeros([R], gl.float32, each)
    for p0 in range(0, parts, CHUNK):
        p = p0 + gl.arange(0, CHUNK, gl.SliceLayout(1, pairs))[:, None]
        m_p = (p < parts) & (o_r < rows)                                                     # [CHUNK, R]
        at = place(workspace, first + p, p, wg, WARPGROUPS, ROWS, DV)                        # [CHUNK, 1]
        # Past the first-level cache: another processor wrote them in this launch.
        b_lse = gl.load(at + ROWS * DV + o_r, mask=m_p, other=float("-inf"), cache_modifier=".cg")
        p_part = gl.convert_layout(at + o_r * DV, pairs)[:, :, None] + o_d
        b_part = gl.load(p_part, mask=m_p[:, :, None] & (o_d < DV), other=0.0, cache_modifier=".cg")
        m_new = gl.maximum(m, gl.max(b_lse, 0))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        w = gl.exp2(b_lse - shift[None, :])                                                  # [CHUNK, R]
        shrink = gl.exp2(m - shift)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, sums))[:, None] + gl.sum(w[:, :, None] * b_part, 0)
        total = total * shrink + gl.sum(w, 0)
        m = m_new
    scale = 1.0 / gl.where(total == 0.0, 1.0, total)
    return acc * gl.convert_layout(scale, gl.SliceLayout(1, sums))[:, None]


@gluon.jit
def join_parts(workspace, out, out_strides, b, x, first, parts, T, DV: gl.constexpr, BLOCK_DV: gl.constexpr,
               GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_T: gl.constexpr, R: gl.constexpr, ROWS: gl.constexpr,
               wg: gl.constexpr, WARPGROUPS: gl.constexpr):
    """out of this warpgroup's rows of an item, R rows at a time."""
    CHUNK: gl.constexpr = 16 if 16 * R * BLOCK_DV <= 16384 else 16384 // (R * BLOCK_DV)
    WIDE: gl.constexpr = 32 if BLOCK_DV >= 128 else BLOCK_DV // 4
    layout: gl.constexpr = gl.BlockedLayout([CHUNK, 1, 4], [1, 32 // WIDE, WIDE], [1, 4, 1], [2, 1, 0])
    sums: gl.constexpr = gl.SliceLayout(0, layout)
    tiles = row_tiles(T, GROUP, BLOCK_M, BLOCK_T)
    rows = gl.minimum(GROUP * T - x % tiles * BLOCK_M - wg * 64, 64)
    for r0 in range(0, rows, R):
        o = merge(workspace, first, parts, r0, rows, layout, CHUNK, R, DV, BLOCK_DV, ROWS, wg, WARPGROUPS)
        h, i, m_row = rows_of(x, wg * 64 + r0, T, GROUP, BLOCK_M, BLOCK_T, R, gl.SliceLayout(1, sums))
        inside = (r0 + gl.arange(0, R, gl.SliceLayout(1, sums)) < rows)[:, None]
        store_rows(out, out_strides, o, b, h, i, m_row & inside, DV)
