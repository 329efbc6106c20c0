"""Which rows a block of the exchange kernels has, what of an item its warpgroups are told, and tiles in shared memory

Row r of a block is head h0 + r % BLOCK_H of query i0 + r // BLOCK_H, 64 in all: a box of [B, T, H, .] that TMA reads and
writes whatever the strides. Blocks pid % lanes == l have the l-th box of every item, so that neighbours read the same latents
at the same time. With chosen tokens an item is one query, and a box is 64 of its heads.
The warps that load find out what a block does and tell the others by twelve numbers in shared memory: code that runs once
is fetched by all processors at once, and costs more than what it computes.
sizes = (B, H, T, S, K, SPLITS, EACH, STEP): K chosen tokens; EACH and STEP as in `line.py`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from ..hooks import HAS_HI, HAS_LO
from ..hopper.tiles import hull, least, most, uniform

ROWS = gl.constexpr(64)
PAGE = gl.constexpr(64)
CHOSEN = gl.constexpr(False)
"""Set in the kernel of chosen tokens: its positions are places in a row of tokens."""
FIELDS = gl.constexpr(12)
"""b, h0, i0, first position, begin, last, tiles, least hi and largest lo of the rows, slot or -1, part, what follows."""


@gluon.jit
def lane_of(sizes, BLOCK_H: gl.constexpr):
    """This block's lane, and how many there are."""
    lanes = (sizes[1] + BLOCK_H - 1) // BLOCK_H
    if not CHOSEN:
        lanes *= (sizes[2] + ROWS // BLOCK_H - 1) // (ROWS // BLOCK_H)
    return gl.program_id(0) % lanes, lanes


@gluon.jit
def place_of(item, sizes, BLOCK_H: gl.constexpr):
    """b, h0, i0 of an item."""
    lane, _lanes = lane_of(sizes, BLOCK_H)
    if CHOSEN:
        return item // sizes[2], lane * BLOCK_H, item % sizes[2]
    else:
        heads = (sizes[1] + BLOCK_H - 1) // BLOCK_H
        return item, lane % heads * BLOCK_H, lane // heads * (ROWS // BLOCK_H)


@gluon.jit
def rows_at(h0, i0, sizes, BLOCK_H: gl.constexpr, layout: gl.constexpr, M: gl.constexpr = ROWS, AXIS: gl.constexpr = 1):
    """h, i [M, 1], or with AXIS 0 [1, M], and whether there is such a row; rows past the end repeat the last one, unstored."""
    r = gl.expand_dims(gl.arange(0, M, gl.SliceLayout(AXIS, layout)), AXIS)
    h = h0 + r % BLOCK_H
    i = i0 + r // BLOCK_H
    return gl.minimum(h, sizes[1] - 1), gl.minimum(i, sizes[2] - 1), (h < sizes[1]) & (i < sizes[2])


@gluon.jit
def live_of(place, sizes, env, BLOCK_H: gl.constexpr):
    """The keys [begin, end) that some row of this block sees, and [above, below) that all of them see."""
    layout: gl.constexpr = gl.BlockedLayout([2, 1], [32, 1], [gl.num_warps(), 1], [1, 0])
    b, h0, i0 = place
    begin = sizes[3] * 0
    end = sizes[3]
    above = begin
    below = end
    if HAS_LO or HAS_HI:
        h, i, _m_row = rows_at(h0, i0, sizes, BLOCK_H, layout)
        lo, hi = hull(b, h, i, sizes[3], env)
        if HAS_LO:
            begin = uniform(least(gl.where(lo < hi, lo, sizes[3])))
            above = uniform(most(lo))
        end = uniform(most(gl.where(lo < hi, hi, 0)))
        below = uniform(least(hi))
    return begin, end, above, below


@gluon.jit
def tell(message, numbers):
    """The numbers of an item, to the warpgroups that wait for its queries."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    for at in gl.static_range(FIELDS):
        message.index(at).store(gl.full([1], numbers[at], gl.int32, layout))


@gluon.jit
def told(message, at: gl.constexpr):
    """Number `at`."""
    return uniform(gl.max(message.index(at).load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0])), 0))


@gluon.jit
def token_at(chosen, strides, b, i, place, last):
    """tokens[b, i, place] for places [N] below last; -1 beyond."""
    p = chosen + b.to(gl.int64) * strides[0] + i.to(gl.int64) * strides[1]
    return gl.load(p + place.to(gl.int64) * strides[2], mask=place < last, other=-1)


@gluon.jit
def flat(buf, at):
    """Slot `at` of a ring [SLOTS, 1, rows, columns] as [rows, columns]."""
    return buf.index(at).reshape([buf.shape[2], buf.shape[3]])


@gluon.jit
def clean(buf, at, j0, begin, last):
    """Zeroes the rows of a tile of latents that are no keys of this block: their weight is 0, but they may hold NaN.

    Two elements at a time, 64 columns at a time: whoever calls this holds the sums in registers.
    """
    if (j0 < begin) | (j0 + buf.shape[2] > last):
        pairs: gl.constexpr = gl.NVMMASharedLayout.get_default_for([buf.shape[2], buf.shape[3] // 2], gl.int32)
        layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
        j = j0 + gl.arange(0, buf.shape[2], gl.SliceLayout(1, layout))
        keys = ((j >= begin) & (j < last))[:, None]
        whole = flat(buf, at)._reinterpret(gl.int32, [buf.shape[2], buf.shape[3] // 2], pairs)
        for c in gl.static_range(buf.shape[3] // 64):
            tile = whole.slice(c * 32, 32, 1)
            tile.store(gl.where(keys, tile.load(layout), 0))
        fence_async_shared()
