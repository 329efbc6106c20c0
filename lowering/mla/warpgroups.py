"""What the three roles of the Hopper latent kernel share: which rows and keys a block has, its buffers, its messages

A block has 64 rows (h, i) and one part of the keys of their hull. Tiles of keys come from the last to the first: the first
to come is the one that the hull cuts.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from ..hooks import HAS_HI, HAS_LO
from ..hopper.tiles import hull, least, most

ROWS = gl.constexpr(64)
PAGE = gl.constexpr(64)


@gluon.jit
def rows_of(sizes, layout: gl.constexpr):
    """This block's b and part; its rows' h, i and whether there is such a row [64, 1], in a layout of matrices."""
    H, T, S, SPLITS = sizes
    tiles = (H * T + ROWS - 1) // ROWS
    pid = gl.program_id(0)
    row = (pid % tiles * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout)))[:, None]
    r = gl.minimum(row, H * T - 1)                                  # rows past the end repeat the last one, unstored
    return pid // tiles // SPLITS, pid // tiles % SPLITS, r // T, r % T, row < H * T


@gluon.jit
def part_of(sizes, env, BLOCK_N: gl.constexpr):
    """The keys [begin, last) of this block, the first key of their first tile, how many tiles: one at least.

    A part without keys has last = 0: its one tile is all masked.
    """
    H, T, S, SPLITS = sizes
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [gl.num_warps(), 1], [1, 0])
    b, part, h, i, m_row = rows_of(sizes, layout)
    begin = 0
    end = S
    if HAS_LO or HAS_HI:
        lo, hi = hull(b, h, i, S, env)
        if HAS_LO:
            begin = least(gl.where(lo < hi, lo, S))
        end = most(gl.where(lo < hi, hi, 0))
    aligned = begin // BLOCK_N * BLOCK_N                            # so that a tile of keys lies in one page
    tiles = (gl.maximum(end - aligned, 0) + BLOCK_N - 1) // BLOCK_N
    each = (tiles + SPLITS - 1) // SPLITS * BLOCK_N
    first = aligned + part * each
    last = gl.where(first < end, gl.minimum(end, first + each), 0)
    first = gl.minimum(first, (S - 1) // BLOCK_N * BLOCK_N)
    return begin, last, first, gl.maximum((last - first + BLOCK_N - 1) // BLOCK_N, 1)


@gluon.jit
def flat(buf, at):
    """Slot `at` of a ring [STAGES, 1, rows, columns] as [rows, columns]."""
    return buf.index(at).reshape([buf.shape[2], buf.shape[3]])


@gluon.jit
def fill_queries(buf, q, strides, sizes, c0: gl.constexpr, D: gl.constexpr):
    """Columns c0 .. c0 + W of q[b, h, i, :D] into buf [64, W]."""
    W: gl.constexpr = buf.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
    b, part, h, i, m_row = rows_of(sizes, layout)
    o_d = c0 + gl.arange(0, W, gl.SliceLayout(0, layout))[None, :]
    p = q + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
    buf.store(gl.load(p + o_d, mask=o_d < D, other=0.0))
    fence_async_shared()


@gluon.jit
def clean(buf, at, j0, begin, last):
    """Zeroes the rows of a tile of latents that are no keys of this block: their weight is 0, but they may hold NaN."""
    W: gl.constexpr = buf.shape[3]
    if (j0 < begin) | (j0 + buf.shape[2] > last):
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
        j = j0 + gl.arange(0, buf.shape[2], gl.SliceLayout(1, layout))
        tile = flat(buf, at)
        tile.store(gl.where(((j >= begin) & (j < last))[:, None], tile.load(layout), 0.0))
        fence_async_shared()


@gluon.jit
def store_half(to, acc, sizes, c0: gl.constexpr, R: gl.constexpr, IN_PARTS: gl.constexpr):
    """Columns c0 .. c0 + W of this block's rows: of the result, or of its part; acc [64, W], as the products left it."""
    out, strides, lse, B = to
    H, T, S, SPLITS = sizes
    layout: gl.constexpr = acc.type.layout
    b, part, h, i, m_row = rows_of(sizes, layout)
    o_d = c0 + gl.arange(0, acc.shape[1], gl.SliceLayout(0, layout))[None, :]
    if IN_PARTS:
        at = ((part.to(gl.int64) * B + b) * H + h) * T + i                                     # [64, 1]
        gl.store(out + at * R + o_d, acc, mask=m_row & (o_d < R))
    else:
        p = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
        gl.store(p + o_d, acc.to(out.dtype.element_ty), mask=m_row & (o_d < R))


@gluon.jit
def barriers(SLOTS: gl.constexpr, FULL: gl.constexpr, EMPTY: gl.constexpr):
    """full and empty of a ring, with the arrivals that each waits for."""
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(SLOTS):
        mbarrier.init(full.index(at), count=FULL)
        mbarrier.init(empty.index(at), count=EMPTY)
    return full, empty
