"""scores[tile of rows, tile of keys] = the share of a row that the tile promises: the mean row's, or the greatest

    share(i, tile) = exp(promise(i, tile)) / sum_tiles exp(promise(i, tile))        promise: as of `promises.py`

A promise is worked out once: what tiles promise each row is kept, relative to the greatest promise by then, until the sum is
known. A program has memory for one tile of rows and takes one after the other, the longest first, to and fro, so that all have
about as much to do; its memory stays in the second-level cache. Only tiles that every row sees wholly, and not the first,
have a score: the others are always attended, and keep the -1 they have.

Shapes: q [B, H, T, D], any strides; boxes [B, H / GROUP, X, 2, D] contiguous; parts [programs, CHUNKS, CHUNK, BLOCK_M] and tops
[programs, CHUNKS, BLOCK_M] float32, CHUNKS = ceil(CAPACITY / CHUNK); scores [ITEMS, CAPACITY] float32,
ITEMS = B * H * ceil(T / BLOCK_M). Grid: any number of programs. FLOPs: 4 D / BOX per visible (i, j): 2 / BOX of q.k.
Traffic: (4 D / BOX + 8 BLOCK_M / BLOCK_N) bytes a visible key and tile of rows, in 16 bits, from that cache.
"""

import triton
import triton.language as tl

from .promises import load_boxes, numbers_of, queries, turns, weigh
from .row_tiles import tile_of


@triton.jit
def item_of(n, ITEMS, T, H, BLOCK_M: tl.constexpr):
    """The n-th tile of rows of this program, as `prefill` numbers them; beyond ITEMS if there is none."""
    programs = tl.num_programs(0)
    place = tl.where(n % 2 == 0, tl.program_id(0), programs - 1 - tl.program_id(0))
    tiles = tl.cdiv(T, BLOCK_M)
    heads = ITEMS // tiles
    at = n * programs + place
    return tl.where(at < ITEMS, at % heads * tiles + at // heads, ITEMS)


@triton.jit
def keep(q, q_strides, boxes, p_parts, p_tops, item, H, T, S, X, env, D: tl.constexpr, GROUP: tl.constexpr,
         BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr,
         UPCAST: tl.constexpr):
    """Writes what the tiles promise the rows of an item; top, total [M]; where those with a score begin and end, and all."""
    b, h, row, lo, hi, start, inner, outer, stop = tile_of(item, H, T, S, env, BLOCK_M, BLOCK_N)
    at = (b, h, tl.minimum(row, T - 1)[:, None])
    b_q = queries(q + b.to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1], q_strides, row, T, D, BLOCK_D)
    p_box = boxes + (b * (H // GROUP) + h // GROUP).to(tl.int64) * X * (2 * D)
    o_m = tl.arange(0, BLOCK_M)
    o_part = tl.arange(0, CHUNK)[None, :] * BLOCK_M + o_m[:, None]                             # [M, CHUNK]
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    last = start + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_N) * BLOCK_N
    STEP: tl.constexpr = CHUNK * BLOCK_N
    before, within, count = turns(last, tl.maximum(inner, start), outer, start, STEP)
    for region in tl.static_range(3):
        for n in tl.range((0, before, within)[region], (before, within, count)[region], num_stages=1):
            j1 = last - n * STEP
            x = numbers_of(j1, BLOCK_N, BOX, CHUNK)
            b_x = load_boxes(p_box, x, X, D, BLOCK_D)
            part, top, total = weigh(b_q, b_x, x, start, lo, hi, at, top, total, env, BLOCK_N, BOX, region != 1, UPCAST)
            tl.store(p_parts + n * (CHUNK * BLOCK_M) + o_part, part)
            tl.store(p_tops + n * BLOCK_M + o_m, top)
    return top, total, tl.maximum(inner, start + BLOCK_N), outer, start, last


@triton.jit(do_not_specialize=["T", "S", "X", "CAPACITY", "ITEMS"])
def estimate(q, q_strides, boxes, parts, tops, scores, H, T, S, X, CAPACITY, ITEMS,
             operands, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_D: tl.constexpr, BOX: tl.constexpr, CHUNK: tl.constexpr, MEAN: tl.constexpr, UPCAST: tl.constexpr):
    env = operands
    STEP: tl.constexpr = CHUNK * BLOCK_N
    o_m = tl.arange(0, BLOCK_M)
    o_t = tl.arange(0, CHUNK)
    rows = tl.program_id(0).to(tl.int64) * tl.cdiv(CAPACITY, CHUNK) * BLOCK_M
    p_parts = parts + rows * CHUNK
    p_tops = tops + rows
    for turn in tl.range(0, tl.cdiv(ITEMS, tl.num_programs(0)), num_stages=1):
        item = item_of(turn, ITEMS, T, H, BLOCK_M)
        if item < ITEMS:
            top, total, whole, outer, start, last = keep(
                q, q_strides, boxes, p_parts, p_tops, item, H, T, S, X, env, D, GROUP, BLOCK_M, BLOCK_N, BLOCK_D, BOX,
                CHUNK, UPCAST)
            tl.debug_barrier()                                      # what one thread has kept another may need
            shift = tl.where(top == float("-inf"), 0.0, top)
            by = 1.0 / tl.where(total == 0.0, 1.0, total)                                      # [M]
            for n in tl.range(0, tl.cdiv(last - start, STEP), num_stages=1):
                b_w = tl.load(p_parts + n * STEP // BLOCK_N * BLOCK_M + o_t[:, None] * BLOCK_M + o_m[None, :])
                share = b_w * (tl.exp2(tl.load(p_tops + n * BLOCK_M + o_m) - shift) * by)[None, :]       # [CHUNK, M]
                best = tl.sum(share, 1) / BLOCK_M if MEAN else tl.max(share, 1)
                j0 = last - n * STEP - (o_t + 1) * BLOCK_N
                p_score = scores + item.to(tl.int64) * CAPACITY + j0 // BLOCK_N
                tl.store(p_score, best, mask=(j0 >= whole) & (j0 + BLOCK_N <= outer))
            tl.debug_barrier()                                      # before what is kept is written anew
