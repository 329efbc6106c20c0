"""Which tiles of keys an item of the Hopper kernel meets where some are left out, and in which order: inward

    first | those past what every row sees, backwards | those seen whole | those before what every row sees, backwards

The whole ones come from the last backwards or, where they were chosen beforehand, as `listing` has listed them. Where no
threshold is asked, nothing depends on the order, and they come last: then what is masked is one loop.
Takes the places of `live`, `place` and `list_of` of the dense kernel. lists: the chosen tiles of every program of `listing`,
`room` numbers each.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import tiles_listed
from ..hopper.plan import extent

LISTED = gl.constexpr(False)
THRESHOLD = gl.constexpr(False)
ROWS = gl.constexpr(128)
"""Of an item: what `listing` has chosen tiles for."""


@gluon.jit
def program_of(item, sizes):
    """The program of `listing` that chose the tiles of an item = (b, h, first row, ...)."""
    tiles = sizes[3]
    return (item[0] * sizes[0] + item[1]) * tiles + tiles - 1 - item[2] // ROWS


@gluon.jit
def list_of(lists, n, item, sizes):
    """The numbers of the tiles chosen for an item."""
    return lists + program_of(item, sizes).to(gl.int64) * sizes[6]


@gluon.jit
def live(n, item, lists, sizes, env, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """begin, end of the keys that some row of an item sees; top, how many tiles lie past those that are seen whole; edges, how
    many are met whatever is chosen: the first, those and the ones before; count of all."""
    begin, end, inside, beyond = extent(item[0], item[1], item[2], sizes[1], sizes[2], env, BLOCK_M)
    first = begin // BLOCK_N * BLOCK_N
    tiles = gl.maximum((end - first + BLOCK_N - 1) // BLOCK_N, 1)
    low = gl.minimum((gl.maximum(inside - first, 0) + BLOCK_N - 1) // BLOCK_N, tiles)
    high = gl.minimum(gl.maximum(beyond - first, 0) // BLOCK_N, tiles)
    low = gl.maximum(low, 1)
    high = gl.maximum(high, low)
    whole = high - low
    edges = tiles - whole
    if LISTED:
        _p_tile, whole = tiles_listed(program_of(item, sizes), env)
    return begin, end, tiles - high, edges, edges + whole


@gluon.jit
def place(item, t, p_list, sizes, BLOCK_N: gl.constexpr):
    """The first key of the t-th tile to come."""
    _b, _h, _row, begin, end, top, edges, count = item
    first = begin // BLOCK_N
    last = gl.maximum((end + BLOCK_N - 1) // BLOCK_N, first + 1)
    tile = gl.where(t == 0, first, last - t)
    if LISTED:
        before = 1 + top if THRESHOLD else edges
        tile = gl.where(t > top, first + (count if THRESHOLD else edges) - t, tile)
        chosen = (t >= before) & (t < before + count - edges)
        tile = gl.where(chosen, gl.load(p_list + (t - before), mask=chosen, other=0).to(gl.int32), tile)
    return tile * BLOCK_N
