"""o = sum over the keys of the chosen pages        the Hopper decode kernel over pages, of which `bounded` has listed some

Takes the places of functions of `decode/pages.py`, `decode/hopper.py` and `decode/consumer.py`, as `chosen.py` does of the
plain kernel. The table is the list [B, G, N] int64, page << 32 | number, of each KV head: key n of an item is row n % PAGE of
entry n // PAGE. Masks and scores are asked at the true position, number * PAGE + n % PAGE, which the warp that loads leaves
beside each tile of K, before it says that the tile is coming: who has the tile has the position.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.extra.cuda import gdc_wait

from ..decode.balance import of, reach
from ..decode.hopper import load_tile, ordinals
from ..decode.pages import HELD
from ..hopper.rings import space
from ..hopper.tiles import slot, uniform
from ..pages import PAGE
from .kept import pages_kept, pages_of


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
def places(k, v, STAGES: gl.constexpr):
    """Rings of K and of V, and the position of the first key of each tile."""
    numbers = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    return space(k, STAGES), space(v, STAGES), numbers


@gluon.jit
def load_pair(k, v, rings, bars, use, entries, at, head, row, STAGES: gl.constexpr):
    """K and V of the keys row .. row + BLOCK_N of the page in entry `at`, and where they stand."""
    page, number = of(entries[0], at), of(entries[1], at)
    place, phase = slot(use, STAGES)
    mbarrier.wait(bars[0][1].index(place), phase ^ 1)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    rings[2].index(place).store(gl.full([1], number * PAGE + row, gl.int32, layout))
    load_tile(k, rings[0], bars[0], use, page, head, row, STAGES)
    load_tile(v, rings[1], bars[1], use, page, head, row, STAGES)


@gluon.jit
def first_key(rings, at, j0):
    """The position of the first key of the tile in slot `at`, which is there."""
    return uniform(gl.max(rings[2].index(at).load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0])), 0))
