"""key n of KV head g of sequence b is k[table[b, n // PAGE], g, n % PAGE, :]        what the Hopper decode kernel loads

Takes the places of functions of `hopper.py` and `balance.py`. k and v are descriptors of the stores [P, G, PAGE, .] in tiles of
BLOCK_N keys, which divides PAGE: tiles begin at its multiples, and each is one box of one page. table: [B, N] of integers,
N = S // PAGE; a negative page counts from the last.
The warp that loads holds HELD entries of the table in registers and asks for the next ones behind the boxes of these, also
where an item ends: they are there before a box finds room. Asked for beside the lengths are the first of its item in an even
line, and those of its share if the sequence fills the table.
Traffic: as `hopper.py`, and 4 or 8 bytes a page and KV head.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hopper.tiles import uniform
from ..pages import PAGE
from .balance import cut, keys_of, keys_of_part, of, reach, row_tiles
from .early import asked_early
from .hopper import load_tile, ordinals

HELD = gl.constexpr(128)


@gluon.jit
def extents(B, T, S, env, BLOCK_N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The first key, a multiple of BLOCK_N, and the number of key tiles of each sequence [BLOCK_B]; no tiles past B."""
    begin, end = reach(B, T, S, env, BLOCK_B, BLOCK_T)
    begin = begin // BLOCK_N * BLOCK_N
    tiles = gl.maximum(gl.cdiv(gl.maximum(end - begin, 0), BLOCK_N), 1)
    return begin, gl.where(ordinals(BLOCK_B) < B, tiles, 0)


@gluon.jit
def entries_of(table, b, head, number, sizes):
    """Entries number .. number + HELD - 1 of a sequence [HELD]; 0 where there is none."""
    at = number + ordinals(HELD)
    p = table[0] + b.to(gl.int64) * table[1][0] + at.to(gl.int64) * table[1][2]
    return gl.load(p, mask=(b < sizes[0]) & (at < sizes[3] // PAGE), other=0).to(gl.int32)


@gluon.jit
def load_tiles(k, v, rings, bars, use, page, head, row, STAGES: gl.constexpr):
    """K and V of the keys row .. row + BLOCK_N of a page."""
    load_tile(k, rings[0], bars[0], use, page, head, row, STAGES)
    load_tile(v, rings[1], bars[1], use, page, head, row, STAGES)


@gluon.jit
def pages_held(k):
    """How many pages there are."""
    return k.shape[0]


@gluon.jit
def load_pair(k, v, rings, bars, use, entries, at, head, row, STAGES: gl.constexpr):
    """K and V of the keys row .. row + BLOCK_N of the page in entry `at`."""
    page = of(entries, at)
    page = gl.where(page < 0, page + pages_held(k), page)
    load_tiles(k, v, rings, bars, use, page, head, row, STAGES)


@gluon.jit
def load_item(k, v, table, rings, bars, use, held, item, after, first, known, count, items, tiles, sizes,
              STAGES: gl.constexpr, BLOCK_N: gl.constexpr):
    """The tiles known .. count of an item, whose first key is `first`, K and V in turn.

    held: entries, of which item and from which on; so are returned those that the next item begins with, at key `after`.
    """
    entries, owner, base = held
    head = item % items // tiles
    for t0 in range(0, count, HELD):
        end = gl.minimum(t0 + HELD, count)
        number = (first + t0 * BLOCK_N) // PAGE
        if (owner != item) | (number < base) | ((first + end * BLOCK_N - 1) // PAGE >= base + HELD):
            entries = entries_of(table, item // items, head, number, sizes)
            base = number
        for t in range(gl.maximum(t0, known), end):
            j0 = first + t * BLOCK_N
            load_pair(k, v, rings, bars, use + t, entries, j0 // PAGE - base, head, j0 % PAGE, STAGES)
        owner = item + (end == count).to(gl.int32)
        base = gl.where(end == count, after, first + end * BLOCK_N) // PAGE
        entries = entries_of(table, owner // items, owner % items // tiles, base, sizes)
    return entries, owner, base


@gluon.jit
def entry_of_share(nth, S, FEW, BLOCK_N: gl.constexpr):
    """From where on HELD entries serve the nth of FEW shares of an item that has nearly S keys."""
    share = gl.cdiv(gl.cdiv(S, BLOCK_N), gl.maximum(FEW, 1)) * BLOCK_N // PAGE
    return gl.maximum(nth * share - gl.maximum(HELD - 1 - share, 0), 0)


@gluon.jit
def either(later, x, y):
    """The entries x if `later`, else y."""
    return gl.where(later, x, y)


@gluon.jit
def load(k, v, table, rings, bars, sizes, env, GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
         BLOCK_N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The producer: the key tiles of its part."""
    B, H, T, S, FEW = sizes
    tiles = row_tiles(T, GROUP, BLOCK_M, BLOCK_T)
    items = tiles * (H // GROUP)
    part = gl.program_id(0)
    early = asked_early(part, B, items, FEW)
    found = extents(B, T, S, env, BLOCK_N, BLOCK_B, BLOCK_T)
    owner = part // gl.maximum(FEW, 1)
    entries = entries_of(table, owner // items, owner % items // tiles, 0, sizes)
    base = entry_of_share(part - owner * FEW, S, FEW, BLOCK_N)
    far = entries_of(table, owner // items, owner % items // tiles, base, sizes)
    if early:
        load_pair(k, v, rings, bars, 0, entries, 0, owner % items // tiles, 0, STAGES)
    line = cut(found, items, FEW, BLOCK_N, BLOCK_B)
    item, before, left = keys_of_part(line, part, items, B, FEW)
    item, before, left = uniform(item), uniform(before), uniform(left)
    known = uniform((early & line[4]).to(gl.int32))
    use = early.to(gl.int32) - known
    later = before * BLOCK_N // PAGE >= base
    held = (either(later, far, entries), owner, gl.where(later, base, 0))
    while left > 0:
        start, n = keys_of(line, item // items)
        count = gl.minimum(uniform(n) - before, left)
        first = uniform(start) + before * BLOCK_N
        after = uniform(keys_of(line, (item + 1) // items)[0])
        held = load_item(k, v, table, rings, bars, use, held, item, after, first, known, count, items, tiles, sizes, STAGES,
                         BLOCK_N)
        known = 0
        use += count
        left -= count
        item += 1
        before = 0
