"""The key tiles of all items in one line, cut into parts

An item is one row tile of one KV head of one sequence; it has as many key tiles as its sequence has live keys, one at
least. Items stand in a line, sequence by sequence. What a sequence has is the union of the hulls of its T rows, the same for
all its `items` items: the hull may not depend on h. Every program finds the line for itself from the lengths: B * T bounds,
one sum, one running sum.

The cut depends on the lengths and the grid alone, so the same keys are summed in the same order every time:

    part w < W            tiles [w * each, (w + 1) * each): program w has it from the start
    part W, W + 1, ...    the next `small` tiles each: whoever is done draws the next one (`hopper.py`)

Equal shares are not equal times: one processor reads a third faster than another. DRAWN 32nds of a share are therefore
drawn, a 32nd at a time; none where a share has less than LEAST_DRAWN tiles, and `each` is all of it.

A part that spans two items pays two starts, and items that are cut are merged. Where nothing is drawn and FEW programs for
each item (0: there are more items than programs) make shares that are hardly larger than equal ones, item x has the
programs x * FEW, x * FEW + 1, ... to itself: the line is even.

Triton and Gluon have this text alike; `ordinals` and `corners` are their own.
"""

import triton
import triton.language as tl

from ..hooks import HAS_HI, HAS_LO, hull_hi, hull_lo
from .lanes import corners, in_line, ordinals

LEAST_KEYS = tl.constexpr(128)
LEAST_DRAWN = tl.constexpr(16)


@triton.jit
def row_tiles(T, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Row tiles of a KV head; BLOCK_T: no less than T, or 0 if that is not known."""
    if BLOCK_T > 0 and GROUP * BLOCK_T <= BLOCK_M:
        return 1
    else:
        return tl.cdiv(GROUP * T, BLOCK_M)


@triton.jit
def total_of(x, y):
    return x + y


@triton.jit
def extents(B, T, S, env, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first visible key and the number of key tiles of each sequence [BLOCK_B]; no tiles past B."""
    o_b, o_t = corners(BLOCK_B, BLOCK_T)
    b = tl.minimum(o_b, B - 1)                                                                 # [BLOCK_B, 1]
    i = tl.minimum(o_t, T - 1)                                                                 # [1, BLOCK_T]
    lo = b * 0 + i * 0
    hi = lo + S
    if HAS_LO:
        lo = tl.minimum(tl.maximum(lo + hull_lo(b, 0, i, env), 0), S).to(tl.int32)
    if HAS_HI:
        hi = tl.minimum(tl.maximum(hi * 0 + hull_hi(b, 0, i, env), 0), S).to(tl.int32)
    begin = in_line(tl.min(tl.where(lo < hi, lo, S), 1))
    end = in_line(tl.max(tl.where(lo < hi, hi, 0), 1))
    tiles = tl.maximum(tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N), 1)
    return begin, tl.where(ordinals(BLOCK_B) < B, tiles, 0)


@triton.jit
def divide(B, T, S, items, FEW, DRAWN, env, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The line: begin, tiles and where it ends, of each sequence [BLOCK_B]; its cut: each, small, whether it is even."""
    begin, tiles = extents(B, T, S, env, BLOCK_N, BLOCK_B, BLOCK_T)
    ends = tiles * items
    if BLOCK_B > 1:
        ends = tl.associative_scan(ends, 0, total_of)
    least = tl.cdiv(LEAST_KEYS, BLOCK_N)
    share = tl.maximum(tl.cdiv(tl.sum(tiles, 0) * items, tl.num_programs(0)), least)
    drawn = tl.where(share < LEAST_DRAWN, 0, share * DRAWN // 32)
    whole = tl.maximum(tl.cdiv(tl.max(tiles, 0), tl.maximum(FEW, 1)), least)
    even = (drawn == 0) & (FEW > 0) & (whole <= share + 1 + share // 8)
    return begin, tiles, ends, tl.where(even, whole, share - drawn), tl.maximum(share // 32, least), even


@triton.jit
def of(x, b):
    """x[b] of x [BLOCK_B]; 0 where b is not in it."""
    return tl.sum(tl.where(ordinals(x.shape[0]) == b, x, 0), 0)


@triton.jit
def to_draw(line):
    """How many parts are drawn."""
    _begin, _tiles, ends, each, small, even = line
    beyond = tl.maximum(tl.max(ends, 0) - tl.num_programs(0) * each, 0)
    return tl.where(even, 0, tl.cdiv(beyond, small))


@triton.jit
def part_at(at, each, small):
    """The part that a tile of the line belongs to."""
    W = tl.num_programs(0)
    return tl.where(at < W * each, at // tl.maximum(each, 1), W + (at - W * each) // small)


@triton.jit
def keys_of_part(line, part, items, B, FEW):
    """Of a part: its first item, how many tiles of that lie before it, how many tiles it has from there on."""
    _begin, tiles, ends, each, small, even = line
    W = tl.num_programs(0)
    own = part // tl.maximum(FEW, 1)
    at = tl.where(part < W, part * each, W * each + (part - W) * small)
    b = tl.where(even, own // items, tl.sum((ends <= at).to(tl.int32), 0))
    n = tl.maximum(of(tiles, b), 1)
    past = at - (of(ends, b) - n * items)
    x = past // n
    before = tl.where(even, (part - own * FEW) * each, past - x * n)
    rest = tl.where(even, n - before, tl.max(ends, 0) - at)
    left = tl.where(b < B, tl.minimum(tl.where(part < W, each, small), rest), 0)
    return tl.where(even, own, b * items + x), before, left


@triton.jit
def keys_of(line, b):
    """The first key of the items of sequence b, and their tiles."""
    return of(line[0], b), of(line[1], b)


@triton.jit
def parts_of(line, item, items, FEW):
    """The first part of an item, and in how many consecutive ones it lies."""
    _begin, tiles, ends, each, small, even = line
    b = item // items
    n = tl.maximum(of(tiles, b), 1)
    at = of(ends, b) - n * items + (item - b * items) * n
    first = part_at(at, each, small)
    parts = tl.where(even, tl.cdiv(n, each), part_at(at + n - 1, each, small) - first + 1)
    return tl.where(even, item * FEW, first), parts
