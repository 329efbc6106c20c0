"""o = sum over the keys of the chosen pages        the Hopper decode kernel over pages, of which `bounded` has listed some

Takes the places of functions of `decode/{pages,hopper,early,consumer}.py`, as `chosen.py` does of the plain kernel. The table
is the list [B, G, N] int64, page << 32 | number, of each KV head: key n of an item is row n % PAGE of entry n // PAGE. Masks
and scores are asked at the true position, number * PAGE + n % PAGE, which the warp that loads leaves beside the rings before
it says that the tile is coming: who has the tile has the position. When it writes that of use n, use n - STAGES - 1 has been
multiplied, over quantised pages n - STAGES - WIDE - 2: there is room for 16.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.extra.cuda import gdc_wait

from ..decode.balance import of, reach
from ..decode.hopper import ordinals
from ..decode.pages import HELD, load_tiles
from ..hopper.tiles import uniform
from ..pages import PAGE
from .kept import pages_kept, pages_of

POSITIONS = gl.constexpr(16)


@gluon.jit
def extents(B, T, S, env, BLOCK_N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The first listed key, 0, and the number of key tiles of each sequence [BLOCK_B]; no tiles past B."""
    begin, end = reach(B, T, S, env, BLOCK_B, BLOCK_T)
    tiles = pages_kept(pages_of(begin, end)[1], T, env) * (PAGE // BLOCK_N)
    return begin * 0, gl.where(ordinals(BLOCK_B) < B, tiles, 0)


@gluon.jit
def entries_of(table, b, head, number, sizes):
    """Entries number .. number + HELD - 1 of a head's list [HELD]: pages and their numbers; 0 past the end of the list."""
    strides = table[1]
    gdc_wait()                                                      # this kernel may have begun before the list is there
    at = number + ordinals(HELD)
    p = table[0] + b.to(gl.int64) * strides[0] + head.to(gl.int64) * strides[1] + at.to(gl.int64) * strides[2]
    entry = gl.load(p, mask=(b < sizes[0]) & (at < sizes[3] // PAGE), other=0)
    return (entry >> 32).to(gl.int32), entry.to(gl.int32)


@gluon.jit
def await_others():
    """Of the kernel ahead only the list is needed, which is waited for where it is read; all else was there before."""
    return


@gluon.jit
def either(later, x, y):
    """The entries x if `later`, else y."""
    return gl.where(later, x[0], y[0]), gl.where(later, x[1], y[1])


@gluon.jit
def positions():
    """Those of more tiles than can be between the warp that loads and the one that multiplies."""
    return gl.allocate_shared_memory(gl.int32, [POSITIONS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def load_pair(k, v, rings, bars, use, entries, at, head, row, STAGES: gl.constexpr):
    """K and V of the keys row .. row + BLOCK_N of the page in entry `at`, and where they stand."""
    page, number = of(entries[0], at), of(entries[1], at)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    rings[2].index(use % POSITIONS).store(gl.full([1], number * PAGE + row, gl.int32, layout))
    load_tiles(k, v, rings, bars, use, page, head, row, STAGES)


@gluon.jit
def first_key(rings, use, j0):
    """The position of the first key of the tile of a use of the rings, which is there."""
    position = rings[2].index(use % POSITIONS).load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    return uniform(gl.max(position, 0))
