"""What the roles of the Hopper latent kernels share: which rows and keys a block has, its buffers, its messages

A block has 64 rows (h, i) and one part of the keys of their hull. Tiles of keys come from the last to the first: the first
to come is the one that the hull cuts.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from ..hooks import HAS_HI, HAS_LO, score
from ..hopper.softmax import SCALE, exp2
from ..hopper.tiles import hull, least, most

ROWS = gl.constexpr(64)
PAGE = gl.constexpr(64)
CHOSEN = gl.constexpr(False)
"""Set in the kernel of chosen tokens: its rows are heads of one query, its positions places in a row of tokens."""


@gluon.jit
def rows_of(sizes, layout: gl.constexpr):
    """This block's b and part; its rows' h, i and whether there is such a row [64, 1], in a layout of matrices."""
    H, T, _S, _K, SPLITS = sizes
    count = H if CHOSEN else H * T
    tiles = (count + ROWS - 1) // ROWS
    pid = gl.program_id(0)
    item = pid // tiles // SPLITS
    row = (pid % tiles * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout)))[:, None]
    r = gl.minimum(row, count - 1)                                  # rows past the end repeat the last one, unstored
    if CHOSEN:
        return item // T, pid // tiles % SPLITS, r, r * 0 + item % T, row < count
    else:
        return item, pid // tiles % SPLITS, r // T, r % T, row < count


@gluon.jit
def live(sizes, env):
    """The keys [begin, end) that some row of this block sees."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [gl.num_warps(), 1], [1, 0])
    S = sizes[2]
    begin = S * 0
    end = S
    if HAS_LO or HAS_HI:
        b, _part, h, i, _m_row = rows_of(sizes, layout)
        lo, hi = hull(b, h, i, S, env)
        if HAS_LO:
            begin = least(gl.where(lo < hi, lo, S))
        end = most(gl.where(lo < hi, hi, 0))
    return begin, end


@gluon.jit
def part_of(sizes, env, BLOCK_N: gl.constexpr):
    """What this block goes through, [begin, last), the first position of the first tile, how many tiles: one at least.

    Positions are keys, or places in a row of chosen tokens. A part without any has last = 0: its one tile is all masked.
    """
    H, T, S, K, SPLITS = sizes
    begin = S * 0
    end = K
    if not CHOSEN:
        begin, end = live(sizes, env)
    part = gl.program_id(0) // (((H if CHOSEN else H * T) + ROWS - 1) // ROWS) % SPLITS
    aligned = begin // BLOCK_N * BLOCK_N                            # so that a tile of keys lies in one page
    tiles = (gl.maximum(end - aligned, 0) + BLOCK_N - 1) // BLOCK_N
    each = (tiles + SPLITS - 1) // SPLITS * BLOCK_N
    first = aligned + part * each
    last = gl.where(first < end, gl.minimum(end, first + each), 0)
    if not CHOSEN:
        first = gl.minimum(first, (S - 1) // BLOCK_N * BLOCK_N)
    return begin, last, first, gl.maximum((last - first + BLOCK_N - 1) // BLOCK_N, 1)


@gluon.jit
def token_at(chosen, strides, b, i, place, last):
    """tokens[b, i, place] for places [N] below last; -1 beyond."""
    p = chosen + b.to(gl.int64) * strides[0] + i.to(gl.int64) * strides[1]
    return gl.load(p + place.to(gl.int64) * strides[2], mask=place < last, other=-1)


@gluon.jit
def weigh(s, m, l, j, seen, at, env, MASKED: gl.constexpr):
    """p [64, N], m [64], l [64], and by what the sums so far shrink [64]; j [1, N]; seen [64, N] counts if MASKED.

    With SCALE, the logit is SCALE * s: the maximum is taken of s, and the scale joins the subtraction.
    """
    b, h, i = at
    a = s
    if SCALE == 0.0:
        a = score(s, b, h, i, j, env)                                                          # [64, N]
    if MASKED:
        a = gl.where(seen, a, float("-inf"))
    highest = gl.max(a, 1)                                                                     # [64]
    if SCALE != 0.0:
        highest = highest * SCALE
    m_new = gl.maximum(m, highest)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    if SCALE != 0.0:
        p = exp2(a * SCALE - shift[:, None])                                                   # [64, N]
    else:
        p = exp2(a - shift[:, None])
    shrink = exp2(m - shift)                                                                   # [64]
    return p, m_new, l * shrink + gl.sum(p, 1), shrink


@gluon.jit
def flat(buf, at):
    """Slot `at` of a ring [STAGES, 1, rows, columns] as [rows, columns]."""
    return buf.index(at).reshape([buf.shape[2], buf.shape[3]])


@gluon.jit
def fill_queries(buf, q, strides, sizes, c0: gl.constexpr, D: gl.constexpr):
    """Columns c0 .. c0 + W of q[b, h, i, :D] into buf [64, W]."""
    W: gl.constexpr = buf.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
    b, _part, h, i, _m_row = rows_of(sizes, layout)
    o_d = c0 + gl.arange(0, W, gl.SliceLayout(0, layout))[None, :]
    p = q + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
    buf.store(gl.load(p + o_d, mask=o_d < D, other=0.0))
    fence_async_shared()


@gluon.jit
def clean(buf, at, j0, begin, last):
    """Zeroes the rows of a tile of latents that are no keys of this block: their weight is 0, but they may hold NaN.

    64 columns at a time: whoever calls this holds the sums in registers.
    """
    W: gl.constexpr = 64
    if (j0 < begin) | (j0 + buf.shape[2] > last):
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // W, W // 8], [4, 1], [1, 0])
        j = j0 + gl.arange(0, buf.shape[2], gl.SliceLayout(1, layout))
        keys = ((j >= begin) & (j < last))[:, None]
        for c in gl.static_range(buf.shape[3] // W):
            tile = flat(buf, at).slice(c * W, W, 1)
            tile.store(gl.where(keys, tile.load(layout), 0.0))
        fence_async_shared()


@gluon.jit
def store_half(to, acc, sizes, c0: gl.constexpr, R: gl.constexpr, IN_PARTS: gl.constexpr):
    """Columns c0 .. c0 + W of this block's rows: of the result, or of its part; acc [64, W], as the products left it."""
    out, strides, _lse, B = to
    H, T, _S, _K, _SPLITS = sizes
    layout: gl.constexpr = acc.type.layout
    b, part, h, i, m_row = rows_of(sizes, layout)
    o_d = c0 + gl.arange(0, acc.shape[1], gl.SliceLayout(0, layout))[None, :]
    if IN_PARTS:
        at = ((part.to(gl.int64) * B + b) * H + h) * T + i                                     # [64, 1]
        gl.store(out + at * R + o_d, acc, mask=m_row & (o_d < R))
    else:
        p = out + b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + i.to(gl.int64) * strides[2]
        gl.store(p + o_d, acc.to(out.dtype.element_ty), mask=m_row & (o_d < R))


@gluon.jit
def barriers(SLOTS: gl.constexpr, FULL: gl.constexpr, EMPTY: gl.constexpr):
    """full and empty of a ring, with the arrivals that each waits for."""
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(SLOTS):
        mbarrier.init(full.index(at), count=FULL)
        mbarrier.init(empty.index(at), count=EMPTY)
    return full, empty


@gluon.jit
def space(kind: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr, STAGES: gl.constexpr,
          SLOTS: gl.constexpr):
    """Shared memory: queries, the ring of latents in left, right and rope columns and its barriers, ready, messages."""
    half: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, HALF], kind)
    rest: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_P], kind)
    queries = (gl.allocate_shared_memory(kind, [64, HALF], half), gl.allocate_shared_memory(kind, [64, HALF], half),
               gl.allocate_shared_memory(kind, [64, BLOCK_P], rest))
    wide: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BLOCK_N, HALF], kind)
    narrow: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, BLOCK_N, BLOCK_P], kind)
    rings = (gl.allocate_shared_memory(kind, [STAGES, 1, BLOCK_N, HALF], wide),
             gl.allocate_shared_memory(kind, [STAGES, 1, BLOCK_N, HALF], wide),
             gl.allocate_shared_memory(kind, [STAGES, 1, BLOCK_N, BLOCK_P], narrow))
    weights: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_N], kind)
    b_p = gl.allocate_shared_memory(kind, [SLOTS, 64, BLOCK_N], weights)
    b_shrink = gl.allocate_shared_memory(gl.float32, [SLOTS, 64], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    bars = barriers(STAGES, 1, 2)
    p_bars = barriers(SLOTS, 1, 1)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    fence_async_shared()
    return queries, rings, bars, ready, (b_p, b_shrink, p_bars[0], p_bars[1])
