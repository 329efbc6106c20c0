"""Which rows and keys come next: one warp draws items of work and finds their live tiles of keys

An item is BLOCK_M queries of one head. Items are numbered so that the longest come first: sections of `section` heads, whose
K and V stay in L2 together; within a section the last rows first, which under a causal mask see most. A block begins with the
item of its own number and draws the next from a counter, 0 before every launch: all blocks together draw `work` times, each
once in vain, and the last to draw sets it back to 0.
Tiles of keys that are seen whole need no mask; those at an edge come first. Where only the hull says which, that is
arithmetic (`place`); where tiles are classed, they are listed (`classed.py`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..hooks import HAS_HI, HAS_LO, HAS_TILE
from .classed import list_of, list_tiles
from .messages import ITEMS, send
from .tiles import hull, least, most


@gluon.jit
def decode(at, H, tiles, section, BLOCK_M: gl.constexpr):
    """b, h and first row of an item."""
    rest = at % (tiles * section)
    head = at // (tiles * section) * section + rest % section
    return head // H, head % H, (tiles - 1 - rest // section) * BLOCK_M


@gluon.jit
def extent(b, h, row, T, S, env, BLOCK_M: gl.constexpr):
    """begin, end of the keys that some row of an item sees; inside, beyond of those that every row does, by the hull."""
    begin = S * 0
    end = S
    inside = S * 0
    beyond = S
    if HAS_LO or HAS_HI:
        layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [gl.num_warps(), 1], [1, 0])
        rows: gl.constexpr = gl.SliceLayout(1, layout)
        o_m = gl.minimum(gl.arange(0, 128 if BLOCK_M <= 128 else 256, rows), BLOCK_M - 1)
        lo, hi = hull(b, h, gl.minimum(row + o_m, T - 1)[:, None], S, env)                     # [128 or 256, 1]
        begin = least(gl.where(lo < hi, lo, S))
        end = most(gl.where(lo < hi, hi, 0))
        inside = most(lo)
        beyond = least(hi)
    return begin, end, inside, beyond


@gluon.jit
def count_tiles(begin, end, inside, beyond, BLOCK_N: gl.constexpr):
    """top, edges, count of the tiles of keys [begin, end), those of [inside, beyond) seen whole."""
    first = begin // BLOCK_N * BLOCK_N
    count = gl.maximum((end - first + BLOCK_N - 1) // BLOCK_N, 1)
    low = gl.minimum((gl.maximum(inside - first, 0) + BLOCK_N - 1) // BLOCK_N, count)
    high = gl.minimum(gl.maximum(gl.maximum(beyond - first, 0) // BLOCK_N, low), count)
    return count - high, count - high + low, count


@gluon.jit
def live(n, item, lists, sizes, env, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """begin, end, top, edges, count of the n-th item of a block = (b, h, first row)."""
    b, h, row = item
    T = sizes[1]
    S = sizes[2]
    begin, end, inside, beyond = extent(b, h, row, T, S, env, BLOCK_M)
    top, edges, count = count_tiles(begin, end, inside, beyond, BLOCK_N)
    if HAS_TILE:
        p_list = list_of(lists, n, item, sizes)
        edges, count = list_tiles(b, h, row, (begin, end, inside, beyond), p_list, sizes[6], T, S, env, BLOCK_M, BLOCK_N)
    return begin, end, top, edges, count


@gluon.jit
def place(item, t, p_list, sizes, BLOCK_N: gl.constexpr):
    """The first key of the t-th tile to come."""
    _b, _h, _row, begin, _end, top, edges, count = item
    if HAS_TILE:
        return gl.load(p_list + gl.where(t < edges, t, sizes[6] - 1 - t + edges))
    else:
        whole = count - 1 - t + edges - top
        return begin // BLOCK_N * BLOCK_N + gl.where(t < top, count - 1 - t, gl.where(t < edges, t - top, whole)) * BLOCK_N


@gluon.jit
def draw(counter, work):
    """The next item of this block; beyond `work` if there is none."""
    blocks = gl.num_programs(0)
    drawn = gl.atomic_add(counter, 1, sem="relaxed")
    if drawn == work - 1:
        gl.store(counter, 0)
    return blocks + drawn


@gluon.jit
def plan(items, counter, lists, sizes, env, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """The planner."""
    H, _T, _S, tiles, section, work, _room = sizes
    wanted = items[3]
    at = gl.program_id(0)
    n = 0
    while at < work:
        mbarrier.wait(items[2].index(n % ITEMS), n // ITEMS % 2 ^ 1)
        b, h, row = decode(at, H, tiles, section, BLOCK_M)
        begin, end, top, edges, count = live(n, (b, h, row), lists, sizes, env, BLOCK_M, BLOCK_N)
        send(items, n, (b, h, row, begin, end, top, edges, count))
        mbarrier.wait(wanted, n % 2)
        at = draw(counter, work)
        n += 1
    mbarrier.wait(items[2].index(n % ITEMS), n // ITEMS % 2 ^ 1)
    send(items, n, (0, 0, 0, 0, 0, 0, 0, 0))
