"""out[b,h,i,:] = sum_j e^a_j latent[b,j] / sum_j e^a_j    of packed latents: latent = e4m3 codes times a scale for 128 channels

The kernel of `kernel.py` for Hopper: the two warpgroups of `exchange.py`, and a third that loads. It has codes of half of the
columns in its registers, 16 bytes a thread at a time, and stores them as numbers of 16 bits where TMA would have put them; the
tiles after that are on their way to the second-level cache. Rope, which is not packed, comes by TMA.
Shapes: q_latent, q_rope, out as `hopper_exchange.py`; codes int32 [B, S, R / 4] or [PAGES, 64, R / 4], scales float32
[.., R / 128], strides of both, in words; rope a descriptor of [.., P] in tiles of BLOCK_N x BLOCK_P. R = 512; rows lie ROW
words apart. Parts, cuts, grid: as there.
Traffic: R + R / 32 + 2 P bytes per key of the hull, for 64 rows at a time. FLOPs: as `kernel.py`, and a product per channel.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.language.extra.cuda import gdc_launch_dependents

from .copies import copy_piece, page_of
from .exchange import even, odd
from .line import likely_item, note_cuts, plan_of
from .memory import EARLY, ask, ask_again, begin, common, pieces
from .rows import PAGE, flat, place_of
from .task import task_of

WORDS = gl.constexpr(32)
"""Of the codes of 128 channels, which share a scale."""
AT_ONCE = gl.constexpr(16)
"""Rows of a tile of 64 that are unpacked at once."""


@gluon.jit
def codes_of(half: gl.constexpr, r: gl.constexpr, keys, tile, ROW: gl.constexpr):
    """Codes, four a word [16, 2, 32], and scales [16, 2] of rows 16 r and on of a tile, in half of the columns; 0 of rows that
    are not there."""
    codes, scales, _strides = keys
    start, rows = tile
    layout: gl.constexpr = gl.BlockedLayout([1, 1, 4], [2, 2, 8], [4, 1, 1], [2, 1, 0])
    few: gl.constexpr = gl.SliceLayout(2, layout)
    n = r * AT_ONCE + gl.arange(0, AT_ONCE, gl.SliceLayout(1, few))[:, None]                   # [16, 1]
    g = half * 2 + gl.arange(0, 2, gl.SliceLayout(0, few))[None, :]                            # [1, 2]
    c = gl.arange(0, WORDS, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]       # [1, 1, 32]
    m_row = (n < rows) & (g >= 0)                                                              # [16, 2]
    b_codes = gl.load(codes + start + ((n * ROW + g * WORDS)[:, :, None] + c), mask=m_row[:, :, None], other=0)
    return b_codes, gl.load(scales + start + (n * ROW + g), mask=m_row, other=0.0)


@gluon.jit
def tile_at(keys, pages, item, j0, S, live, IN_PAGES: gl.constexpr):
    """(block, row) of the tile of keys j0 and on of an item, and (where it begins, in words, how many rows are there)."""
    _codes, _scales, strides = keys
    block = page_of(pages[0], pages[1], item, j0, live, IN_PAGES)
    row = j0
    rows = S - j0
    if IN_PAGES:
        row = j0 % PAGE
        rows = S * 0 + PAGE
    start = gl.cast(block, gl.int64) * strides[0] + gl.cast(row, gl.int64) * strides[1]
    return (block, row), (gl.multiple_of(start, 4), gl.where(live, rows, 0))                   # rows begin at 16 bytes


@gluon.jit
def pair(words, scale, kind: gl.constexpr):
    """The codes in the low halves of words, times scale, as two numbers of `kind` in a word."""
    read: gl.constexpr = "{ .reg .b16 h; cvt.u16.u32 h, $1; cvt.rn.f16x2.e4m3x2 $0, h; }"
    write: gl.constexpr = "cvt.rn.bf16x2.f32 $0, $2, $1;" if kind == gl.bfloat16 else "cvt.rn.f16x2.f32 $0, $2, $1;"
    both = gl.inline_asm_elementwise(read, "=r,r", [words], dtype=gl.int32, is_pure=True, pack=1)
    even = both.to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32) * scale
    odd = (both >> 16).to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32) * scale
    return gl.inline_asm_elementwise(write, "=r,f,f", [even, odd], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def put(piece: gl.constexpr, r: gl.constexpr, found, rings, slot):
    """Codes and scales as numbers, two a word, in their rows of a piece of a tile."""
    b_codes, b_scale = found
    ring = rings[piece]
    words: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ring.shape[2], ring.shape[3] // 2], gl.int32)
    scale = b_scale[:, :, None]
    x = gl.join(pair(b_codes, scale, ring.dtype), pair(b_codes >> 16, scale, ring.dtype))      # [16, 2, 32, 2]
    whole = flat(ring, slot)._reinterpret(gl.int32, [ring.shape[2], ring.shape[3] // 2], words)
    whole.slice(r * AT_ONCE, AT_ONCE, 0).store(gl.reshape(x, [AT_ONCE, 4 * WORDS]))


@gluon.jit
def codes_of_half(half: gl.constexpr, keys, tile, ROW: gl.constexpr):
    """Codes and scales of all rows of a tile, in half of the columns."""
    return (codes_of(half, 0, keys, tile, ROW), codes_of(half, 1, keys, tile, ROW), codes_of(half, 2, keys, tile, ROW),
            codes_of(half, 3, keys, tile, ROW))


@gluon.jit
def fetch(keys, tile, ROW: gl.constexpr):
    """A tile is on its way to the second-level cache: rows lie one after the other, in lines of 128 bytes."""
    start, rows = tile
    line: gl.constexpr = """{
        .reg .pred p;
        setp.lt.s32 p, $2, $3;
        @p prefetch.global.L2 [$1];
        mov.b32 $0, 0;
    }"""
    at = gl.arange(0, 512, gl.BlockedLayout([1], [32], [4], [0])) * WORDS                      # [512], words
    size = ROW * gl.minimum(rows, PAGE)
    given = [(keys[0] + start + at).to(gl.int64), at, gl.full([512], size, gl.int32, at.type.layout)]
    gl.inline_asm_elementwise(line, "=r,l,r,r", given, dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def unpack(half: gl.constexpr, found, rings, bars, slot, phase):
    """Puts half of the columns of a tile, once its slot is empty."""
    piece: gl.constexpr = 2 * half
    mbarrier.wait(bars[1].index(2 * piece + slot), phase)
    for r in gl.static_range(4):
        put(piece, r, found[r], rings, slot)
    fence_async_shared()
    mbarrier.arrive(bars[0].index(2 * piece + slot))


@gluon.jit
def load(keys, d_rope, d_queries, pages, queries, rings, bars, message, sizes, env, cuts, ROW: gl.constexpr,
         IN_PAGES: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The warpgroup that loads: tiles of latents, the last first, piece by piece; queries as in `hopper_exchange.py`.

    Two tiles are on their way to the cache, and half of the columns of one to registers, also while it waits for a slot.
    """
    N: gl.constexpr = rings[0].shape[2]
    gdc_launch_dependents()                                         # the merge may take its place on idle processors
    likely = likely_item(sizes, BLOCK_B, BLOCK_H)
    ask(d_queries, queries, bars[2].index(EARLY), place_of(likely, sizes, BLOCK_H))
    plan = plan_of(sizes, env, N, BLOCK_B, BLOCK_T, BLOCK_H)
    evens = plan[4] * 0
    odds = evens
    ask_again(d_queries, queries, bars, plan[4], likely, sizes, BLOCK_H)
    for item in range(plan[4], plan[5]):
        segment, _live, numbers = task_of(item, plan, sizes, env, N, BLOCK_B, BLOCK_T, BLOCK_H)
        first, count = segment[5], segment[6]
        j0 = first + (count - 1) * N
        at, tile = tile_at(keys, pages, item, j0, sizes[3], count > 0, IN_PAGES)
        at_1, tile_1 = tile_at(keys, pages, item, j0 - N, sizes[3], count > 1, IN_PAGES)
        fetch(keys, tile_1, ROW)
        found = codes_of_half(0, keys, tile, ROW)
        for t in range(count):
            slot = t % 2
            phase = (gl.where(slot == 0, evens, odds) + t // 2) % 2 ^ 1
            at_2, tile_2 = tile_at(keys, pages, item, j0 - (t + 2) * N, sizes[3], t + 2 < count, IN_PAGES)
            fetch(keys, tile_2, ROW)
            unpack(0, found, rings, bars, slot, phase)
            found = codes_of_half(1, keys, tile, ROW)
            copy_piece(1, (d_rope, d_rope), at, rings, bars, slot, phase)
            unpack(1, found, rings, bars, slot, phase)
            found = codes_of_half(0, keys, tile_1, ROW)
            if t == gl.minimum(count - 1, 1):
                begin(d_queries, queries, message, bars, item - plan[4], numbers)
            at = at_1
            tile = tile_1
            at_1 = at_2
            tile_1 = tile_2
        note_cuts(cuts, item, segment, sizes, BLOCK_B, BLOCK_H)
        evens += (count + 1) // 2
        odds += count // 2


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "SPLITS"])
def packed_exchange(q_latent, q_rope, codes, scales, codes_strides, rope, pages, pages_strides, out, workspace, lse,
                    cuts, B, H, T, S, SPLITS, operands, R: gl.constexpr, BLOCK_N: gl.constexpr, HALF: gl.constexpr,
                    BLOCK_P: gl.constexpr, BLOCK_H: gl.constexpr, IN_PAGES: gl.constexpr, BLOCK_B: gl.constexpr,
                    BLOCK_T: gl.constexpr, ROW: gl.constexpr):
    env = operands
    rings = pieces(rope.dtype, BLOCK_N, HALF, BLOCK_P)
    queries, bars, b_p, small, message = common(rope.dtype, BLOCK_N, HALF, BLOCK_P, BLOCK_H, 1)
    sizes = (B, H, T, S, S, SPLITS, SPLITS, SPLITS)
    keys = (codes, scales, codes_strides)
    to = (out, workspace, lse, cuts)
    gl.warp_specialize([
        (even, ((), queries, rings, bars, b_p, small, message, sizes, env, to, R, BLOCK_H)),
        (odd, ((), queries, rings, bars, b_p, small, message, sizes, env, to, R, BLOCK_H)),
        (load, (keys, rope, (q_latent, q_rope), (pages, pages_strides), queries, rings, bars, message, sizes, env, cuts, ROW,
                IN_PAGES, BLOCK_H, BLOCK_B, BLOCK_T)),
    ], [4, 4], [216, 72])
