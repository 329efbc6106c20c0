"""The key tiles of all items in one line, cut into equal shares: `decode/balance.py` for the Hopper kernels of latents

An item is what shares its keys: a sequence, or with chosen tokens one query. Block w = pid // lanes of a lane takes tiles
[w * each, (w + 1) * each) of its line. The warps that load find all of this from the lengths.
Without a line (BLOCK_B = 0) a block has one item, or one of SPLITS equal parts of it.
A part of an item that has several goes to a slot of the workspace: without a line to slot w; with one, block w's part of
an item to slot w + item. From one piece of the line to the next the block, the item or both become one more, so no two have
one slot, and the parts of an item lie side by side.

A plan is (at, stop, each, whole, first item, one past the last, tiles of each item or 0 where they differ); a segment is
(part, parts, holder, begin, last, first, count): keys [begin, last) in `count` tiles from `first` on, one at least; block
`holder` of the lane has part 0.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hopper.tiles import hull, uniform
from .rows import CHOSEN, lane_of

LEAST_TILES = gl.constexpr(3)
NONE = gl.constexpr(2**30)


@gluon.jit
def lengths(sizes, env, N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """First and one past the last visible key, and tiles, of each sequence [BLOCK_B], in each warp; no tiles past B."""
    B, _H, T, S, _K, _SPLITS, _EACH, _STEP = sizes
    PER: gl.constexpr = BLOCK_B // 32 if BLOCK_B > 32 else 1
    layout: gl.constexpr = gl.BlockedLayout([PER, BLOCK_T], [32, 1], [gl.num_warps(), 1], [1, 0])
    o_b = gl.arange(0, BLOCK_B, gl.SliceLayout(1, layout))
    b = gl.minimum(o_b, B - 1)[:, None]                                                        # [BLOCK_B, 1]
    i = gl.minimum(gl.arange(0, BLOCK_T, gl.SliceLayout(0, layout)), T - 1)[None, :]           # [1, BLOCK_T]
    lo, hi = hull(b, 0, b * 0 + i, S, env)
    begin = gl.min(gl.where(lo < hi, lo, S), 1)                                                # [BLOCK_B]
    end = gl.max(gl.where(lo < hi, hi, 0), 1)
    tiles = gl.maximum((gl.maximum(end - begin // N * N, 0) + N - 1) // N, 1)
    return begin, end, gl.where(o_b < B, tiles, 0)


@gluon.jit
def share(tiles, blocks):
    """(tiles of a block, whether items are cut at their own starts) for tiles [BLOCK_B] of each item.

    A block whose share spans two items pays two starts and two merges. Where a share a little larger lets every item be cut at
    its own start, it is taken.
    """
    PER: gl.constexpr = tiles.type.layout.parent.size_per_thread[0]
    layout: gl.constexpr = gl.BlockedLayout([PER, 8], [32, 1], [gl.num_warps(), 1], [1, 0])
    total = uniform(gl.sum(tiles, 0))
    each = gl.maximum((total + blocks - 1) // blocks, LEAST_TILES)
    limit = each + 1 + each // 8
    whole = each + gl.arange(0, 8, gl.SliceLayout(0, layout)) * (1 + each // 32)               # [8]
    n = gl.convert_layout(tiles, gl.SliceLayout(1, layout))[:, None]
    parts = gl.sum((n + whole[None, :] - 1) // whole[None, :], 0)                              # [8]
    found = uniform(gl.min(gl.where((parts <= blocks) & (whole <= limit), whole, NONE), 0))
    fits = found < NONE
    return gl.where(fits, found, each), fits


@gluon.jit
def share_alike(B, n, blocks, most):
    """As `share`, for n tiles of each of B items, which have `most` blocks at most; or a block has a few whole ones."""
    each = gl.maximum((B * n + blocks - 1) // blocks, LEAST_TILES)
    limit = each + 1 + each // 8
    whole = gl.maximum((n + most - 1) // most, LEAST_TILES)
    fits = (blocks >= B) & (whole <= limit)
    if fits:
        each = whole
    else:
        several = (each + n - 1) // n * n
        each = gl.where(several <= limit, several, each)
    return each, fits


@gluon.jit
def lengthened(tiles, each, whole):
    """Tiles of each item in the line: cut at its own start, an item has whole shares; what it gains holds no keys."""
    return gl.where(whole, (tiles + each - 1) // each * each, tiles)


@gluon.jit
def item_at(at, tiles):
    """The item that tile `at` of the line belongs to, by bisection."""
    o_b = gl.arange(0, tiles.shape[0], tiles.type.layout)
    found = at * 0
    step = found + tiles.shape[0] // 2
    while step > 0:
        before = uniform(gl.sum(gl.where(o_b < found + step, tiles, 0), 0))
        found = gl.where(before <= at, found + step, found)
        step = step // 2
    return found


@gluon.jit
def plan_of(sizes, env, N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_H: gl.constexpr):
    """What this block does: one item at least. Past the end of the line it is an empty part that nobody joins."""
    B, _H, T, _S, _K, SPLITS, EACH, STEP = sizes
    _lane, lanes = lane_of(sizes, BLOCK_H)
    w = gl.program_id(0) // lanes
    if BLOCK_B == 0:
        return w * 0, w * 0, SPLITS, w >= 0, w // SPLITS, w // SPLITS + 1, w * 0
    else:
        if CHOSEN:
            return plan_alike(w, B * T, STEP, EACH, w >= 0)
        else:
            likely = likely_item(sizes, BLOCK_B, BLOCK_H)
            return plan_of_lengths(w, gl.num_programs(0) // lanes, likely, sizes, env, N, BLOCK_B, BLOCK_T)


@gluon.jit
def plan_alike(w, items, n, each, whole):
    """The plan of block w where each item has n tiles."""
    at = gl.minimum(w * each, items * n)
    stop = gl.minimum(at + each, items * n)
    first = gl.minimum(at // n, items - 1)
    return at, stop, each, whole, first, gl.maximum((stop + n - 1) // n, first + 1), n


@gluon.jit
def likely_item(sizes, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr):
    """The first item of this block if lengths are equal, known before they are."""
    B, _H, T, _S, _K, SPLITS, _EACH, _STEP = sizes
    _lane, lanes = lane_of(sizes, BLOCK_H)
    w = gl.program_id(0) // lanes
    if BLOCK_B == 0:
        return w // SPLITS
    else:
        items = B
        if CHOSEN:
            items = B * T
        blocks = gl.num_programs(0) // lanes
        mine = gl.where(blocks < items, w * ((items + blocks - 1) // blocks), w // gl.maximum(blocks // items, 1))
        return gl.minimum(mine, items - 1)


@gluon.jit
def plan_of_lengths(w, blocks, likely, sizes, env, N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The same, where the lengths say it. Of equal lengths no item need be searched for, and where each item has equally many
    blocks little is divided after the lengths are there: a block waits for this, and a division takes a tenth of a us."""
    B = sizes[0]
    most = gl.maximum(blocks // B, 1)
    _begin, _end, tiles = lengths(sizes, env, N, BLOCK_B, BLOCK_T)
    n = uniform(gl.max(tiles, 0))
    if n == uniform(gl.min(gl.where(tiles > 0, tiles, NONE), 0)):
        each, whole = share_alike(B, n, blocks, most)
        if whole & ((most - 1) * each < n):                         # the last of an item's blocks has keys too
            n = most * each
            at = gl.minimum(w * each, B * n)
            stop = gl.minimum(at + each, B * n)
            first = likely
            beyond = likely + 1
        else:
            at, stop, each, whole, first, beyond, n = plan_alike(w, B, lengthened(n, each, whole), each, whole)
    else:
        each, whole = share(tiles, blocks)
        tiles = lengthened(tiles, each, whole)
        total = uniform(gl.sum(tiles, 0))
        n = n * 0
        at = gl.minimum(w * each, total)
        stop = gl.minimum(at + each, total)
        first = gl.minimum(item_at(at, tiles), B - 1)
        beyond = gl.where(at < stop, item_at(stop - 1, tiles) + 1, first + 1)
    return at, stop, each, whole, first, beyond, n


@gluon.jit
def segment_of(item, live, plan, sizes, env, N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr,
               BLOCK_H: gl.constexpr):
    """What this block does of an item; live: the keys [begin, end) that its rows see."""
    _B, _H, _T, S, K, SPLITS, _EACH, _STEP = sizes
    at, stop, each, whole, _first, _beyond, alike = plan
    _lane, lanes = lane_of(sizes, BLOCK_H)
    w = gl.program_id(0) // lanes
    begin, end = live
    if CHOSEN:
        begin = S * 0
        end = K
    if BLOCK_B == 0:
        parts = SPLITS
        part = w % SPLITS
        holder = w - part
        tiles = (gl.maximum(end - begin // N * N, 0) + N - 1) // N
        first_tile = part * ((tiles + SPLITS - 1) // SPLITS)
        last_tile = first_tile + (tiles + SPLITS - 1) // SPLITS
    else:
        n = alike
        line = item * alike
        if not CHOSEN:  # noqa: SIM102 (one is of the compiler, one of the launch)
            if (alike == 0) | (BLOCK_T > 1):
                begins, ends, tiles = lengths(sizes, env, N, BLOCK_B, BLOCK_T)
                tiles = lengthened(tiles, each, whole)
                o_b = gl.arange(0, BLOCK_B, tiles.type.layout)
                n = uniform(gl.sum(gl.where(o_b == item, tiles, 0), 0))
                line = uniform(gl.sum(gl.where(o_b < item, tiles, 0), 0))
                begin = uniform(gl.sum(gl.where(o_b == item, begins, 0), 0))
                end = uniform(gl.sum(gl.where(o_b == item, ends, 0), 0))
        holder = line // each
        parts = (line + n - 1) // each - holder + 1
        part = w - holder
        first_tile = gl.maximum(at - line, 0)
        last_tile = gl.minimum(n, stop - line)
    aligned = begin // N * N                                        # so that a tile of keys lies in one page
    first = aligned + first_tile * N
    last = gl.where(first < end, gl.minimum(end, aligned + last_tile * N), 0)
    if not CHOSEN:
        first = gl.minimum(first, (S - 1) // N * N)
    return part, parts, holder, begin, last, first, gl.maximum((last - first + N - 1) // N, 1)


@gluon.jit
def slot_of(item, part, parts, sizes, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr):
    """Where this block keeps its part of an item; -1: nowhere, it has all of it."""
    _lane, lanes = lane_of(sizes, BLOCK_H)
    slot = gl.program_id(0) // lanes
    if BLOCK_B > 0:
        slot += item
    return gl.where((parts == 1) & (part == 0), -1, slot)


@gluon.jit
def note_cuts(cuts, item, segment, sizes, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr):
    """For the merge: cuts [items] int64, 2^32 times the slot of an item's part 0 plus how many parts."""
    if BLOCK_B > 0:
        lane, _lanes = lane_of(sizes, BLOCK_H)
        if (lane == 0) & (segment[0] == 0):
            gl.store(cuts + item, (segment[2] + item).to(gl.int64) * 4294967296 + segment[1])
