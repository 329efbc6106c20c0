"""The key tiles of all items in one line, cut into equal shares

An item is one row tile of one KV head of one sequence; it has as many key tiles as its sequence has live keys, one at
least. Items stand in a line, sequence by sequence, and program w takes the tiles [w * each, (w + 1) * each). What a
sequence has is the union of the hulls of its T rows, the same for all its `items` items: the hull may not depend on h.
Every program finds the whole line for itself from the lengths: B * T bounds, one sum, one running sum.
"""

import triton
import triton.language as tl

from ..scan import hull

LEAST_KEYS = tl.constexpr(128)
NONE = tl.constexpr(2**31 - 1)


@triton.jit
def extents(B, T, S, env, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first visible key and the number of key tiles of each sequence [BLOCK_B]; no tiles past B."""
    o_b = tl.arange(0, BLOCK_B)
    b = tl.minimum(o_b, B - 1)[:, None]                                                        # [BLOCK_B, 1]
    i = tl.minimum(tl.arange(0, BLOCK_T), T - 1)[None, :]                                      # [1, BLOCK_T]
    lo, hi = hull(b, 0, i, S, env, BLOCK_B)
    seen = (lo < hi) & (i >= 0)                                                                # [BLOCK_B, BLOCK_T]
    begin = tl.min(tl.where(seen, lo, S), 1)
    end = tl.max(tl.where(seen, hi, 0), 1)
    tiles = tl.maximum(tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N), 1)
    return begin, tl.where(o_b < B, tiles, 0)


@triton.jit
def share(tiles, items, B, BLOCK_N: tl.constexpr):
    """(tiles of a program, tiles of each sequence [BLOCK_B]) for `items` items a sequence.

    A program whose share spans two items pays two starts and two merges. Where a share a little larger lets every item be
    cut at its own start, it is taken, and the items are lengthened to whole shares; what they gained holds no keys.
    """
    W = tl.num_programs(0)
    each = tl.maximum(tl.cdiv(tl.sum(tiles) * items, W), tl.cdiv(LEAST_KEYS, BLOCK_N))
    whole = each + tl.arange(0, 8) * (1 + each // 32)                                          # [8]
    programs = tl.sum(tl.cdiv(tiles[:, None], whole[None, :]), 0) * items
    found = tl.min(tl.where((programs <= W) & (whole <= each + 1 + each // 8), whole, NONE))
    fits = found < NONE
    return tl.where(fits, found, each), tl.where(fits, tl.cdiv(tiles, found) * found, tiles)


@triton.jit
def item_at(at, tiles, items, BLOCK_B: tl.constexpr):
    """The item that tile `at` of the line belongs to."""
    if BLOCK_B == 1:
        return at // tl.sum(tiles)
    else:
        ends = tl.cumsum(tiles * items)
        b = tl.sum((ends <= at).to(tl.int32))
        n = tl.sum(tl.where(tl.arange(0, BLOCK_B) == b, tiles, 0))
        start = tl.sum(tl.where(tl.arange(0, BLOCK_B) < b, tiles, 0)) * items
        return b * items + (at - start) // n


@triton.jit
def item_in_line(item, begin, tiles, items, BLOCK_B: tl.constexpr):
    """An item's first key, its tiles, and where in the line they start."""
    if BLOCK_B == 1:
        n = tl.sum(tiles)
        return tl.sum(begin), n, item * n
    else:
        b = item // items
        o_b = tl.arange(0, BLOCK_B)
        n = tl.sum(tl.where(o_b == b, tiles, 0))
        start = tl.sum(tl.where(o_b < b, tiles, 0)) * items
        return tl.sum(tl.where(o_b == b, begin, 0)), n, start + item % items * n
