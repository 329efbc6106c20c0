"""Live tiles of keys of an item where tiles are classed: each of the hull looked at, 32 at a time, and listed if it is live

A list is in global memory that the block has for itself, `room` numbers for each message on its way: first keys of the tiles
at an edge from its start, of whole ones from its end.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import tile_class
from .messages import ITEMS
from .tiles import most

SUMMARY_TILE = gl.constexpr(64)


@gluon.jit
def list_of(lists, n, item, sizes):
    """Where this block lists the tiles of its n-th item = (b, h, first row, ...)."""
    return lists + (gl.program_id(0) * ITEMS + n % ITEMS).to(gl.int64) * sizes[6]


@gluon.jit
def classes(b, h, row, j, T, S, env, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """Least and greatest class of the residue in the tiles that begin at j [1, 32], for the rows of an item."""
    low = j * 0 + 2
    high = j * 0
    for m in gl.static_range(BLOCK_M // SUMMARY_TILE):
        for n in gl.static_range(BLOCK_N // SUMMARY_TILE):
            i = j * 0 + gl.minimum(row + m * SUMMARY_TILE, T - 1)
            found = tile_class(b, h, i, gl.minimum(j + n * SUMMARY_TILE, S - 1), env).to(gl.int32)
            low = gl.minimum(low, found)
            high = gl.maximum(high, found)
    return low, high


@gluon.jit
def add(x, y):
    return x + y


@gluon.jit
def list_tiles(b, h, row, span, p_list, room, T, S, env, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """edges, count of the live tiles, which are listed; a dead one if there is none."""
    begin, end, inside, beyond = span
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [1, gl.num_warps()], [1, 0])
    first = begin // BLOCK_N * BLOCK_N
    edges = first * 0
    whole = first * 0
    for c0 in range(first, end, 32 * BLOCK_N):
        j = c0 + gl.arange(0, 32, gl.SliceLayout(0, layout))[None, :] * BLOCK_N                # [1, 32]
        low, high = classes(b, h, row, j, T, S, env, BLOCK_M, BLOCK_N)
        is_whole = (low == 2) & (j >= inside) & (j + BLOCK_N <= beyond)
        is_edge = (high > 0) & (j < end) & (is_whole == 0)
        seen = gl.where(is_whole, 1 << 16, is_edge.to(gl.int32))
        before = gl.associative_scan(seen, 1, add)
        at = gl.where(is_whole, room - whole - (before >> 16), edges + (before & 65535) - 1)
        gl.store(p_list + at, j, mask=is_whole | is_edge)
        last = most(before)
        edges += last & 65535
        whole += last >> 16
    if edges + whole == 0:
        gl.store(p_list, gl.minimum(first, S - 1))
        edges += 1
    tl.debug_barrier()                                              # all lanes have stored before one of them says so
    return edges, edges + whole
