"""The key tiles of all items in one line, cut into parts

An item is one row tile of one KV head of one sequence; it has as many key tiles as its sequence has live keys, one at
least. Items stand in a line, sequence by sequence. What a sequence has is the union of the hulls of its T rows, the same for
all its `items` items: the hull may not depend on h. Every program finds the line for itself from the lengths: B * T bounds,
one sum, one running sum.

The cut depends on the lengths and the grid alone, so the same keys are summed in the same order every time: part w, of
program w, has tiles [w * each, (w + 1) * each). A part that spans two items pays two starts, and items that are cut are
merged. Where FEW programs for each item (0: there are more items than programs) make shares that are hardly larger than equal
ones, item x has the programs x * FEW, x * FEW + 1, ... to itself: the line is even.

Shares stay equal although equal shares are not equal times (`BENCHMARKS.md`): parts that whoever is done draws from a counter
cost more than they even out.

Triton and Gluon have this text alike; `ordinals` and `corners` are their own.
"""

import triton
import triton.language as tl

from ..hooks import HAS_HI, HAS_LO, hull_hi, hull_lo
from .lanes import corners, in_line, ordinals

LEAST_KEYS = tl.constexpr(128)


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
def reach(B, T, S, env, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first visible key of each sequence [BLOCK_B] and one past the last; S and 0 where there is none."""
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
    return begin, end


@triton.jit
def extents(B, T, S, env, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first visible key and the number of key tiles of each sequence [BLOCK_B]; no tiles past B."""
    begin, end = reach(B, T, S, env, BLOCK_B, BLOCK_T)
    tiles = tl.maximum(tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N), 1)
    return begin, tl.where(ordinals(BLOCK_B) < B, tiles, 0)


@triton.jit
def divide(B, T, S, items, FEW, env, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The line: begin, tiles and where it ends, of each sequence [BLOCK_B]; its cut: each, whether it is even."""
    return cut(extents(B, T, S, env, BLOCK_N, BLOCK_B, BLOCK_T), items, FEW, BLOCK_N, BLOCK_B)


@triton.jit
def cut(found, items, FEW, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """The line of what `extents` found."""
    begin, tiles = found
    ends = tiles * items
    if BLOCK_B > 1:
        ends = tl.associative_scan(ends, 0, total_of)
    least = tl.cdiv(LEAST_KEYS, BLOCK_N)
    share = tl.maximum(tl.cdiv(tl.sum(tiles, 0) * items, tl.num_programs(0)), least)
    whole = tl.maximum(tl.cdiv(tl.max(tiles, 0), tl.maximum(FEW, 1)), least)
    even = (FEW > 0) & (whole <= share + 1 + share // 8)
    return begin, tiles, ends, tl.where(even, whole, share), even


@triton.jit
def of(x, b):
    """x[b] of x [BLOCK_B]; 0 where b is not in it."""
    return tl.sum(tl.where(ordinals(x.shape[0]) == b, x, 0), 0)


@triton.jit
def keys_of_part(line, part, items, B, FEW):
    """Of a part: its first item, how many tiles of that lie before it, how many tiles it has from there on."""
    _begin, tiles, ends, each, even = line
    own = part // tl.maximum(FEW, 1)
    at = part * each
    b = tl.where(even, own // items, tl.sum((ends <= at).to(tl.int32), 0))
    n = tl.maximum(of(tiles, b), 1)
    past = at - (of(ends, b) - n * items)
    x = past // n
    before = tl.where(even, (part - own * FEW) * each, past - x * n)
    rest = tl.where(even, n - before, tl.max(ends, 0) - at)
    return tl.where(even, own, b * items + x), before, tl.where(b < B, tl.minimum(each, rest), 0)


@triton.jit
def keys_of(line, b):
    """The first key of the items of sequence b, and their tiles."""
    return of(line[0], b), of(line[1], b)


@triton.jit
def parts_of(line, item, items, FEW):
    """The first part of an item, and in how many consecutive ones it lies."""
    _begin, tiles, ends, each, even = line
    b = item // items
    n = tl.maximum(of(tiles, b), 1)
    at = of(ends, b) - n * items + (item - b * items) * n
    first = at // each
    parts = tl.where(even, tl.cdiv(n, each), (at + n - 1) // each - first + 1)
    return tl.where(even, item * FEW, first), parts
