"""o = sum over the keys of the chosen pages        decode over pages, of which `bounded` has listed some

Takes the places of functions of the plain kernel. The keys of an item are those of its listed pages one after the other: key n
is row n % PAGE of entry n // PAGE of the list, which says where the page lies and which one it is, page << 32 | number, in
ascending order. Masks and scores are asked at the true position, number * PAGE + n % PAGE; what no row sees is not read.
BLOCK_N divides PAGE: a tile lies in one page, and its addresses are one number and PAGE rows.
"""

import triton
import triton.language as tl

from ..decode.balance import reach
from ..decode.lanes import ordinals
from ..pages import PAGE
from ..scan import nothing, tile_range, visit
from .kept import pages_kept, pages_of

FAR = tl.constexpr(2147483647)


@triton.jit
def extents(B, T, S, env, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first listed key, 0, and the number of key tiles of each sequence [BLOCK_B]; no tiles past B."""
    begin, end = reach(B, T, S, env, BLOCK_B, BLOCK_T)
    tiles = pages_kept(pages_of(begin, end)[1], T, env) * (PAGE // BLOCK_N)
    return begin * 0, tl.where(ordinals(BLOCK_B) < B, tiles, 0)


@triton.jit
def end_of(last, lo, hi, S):
    """Listed keys are not counted from 0 to S: how many there are says where they end."""
    return last


@triton.jit
def head_of(k, k_strides, v, v_strides, b64, g):
    """Pointers to the head in page 0, of rows and of scales; the strides; the list of the head."""
    g64 = g.to(tl.int64)
    heads = (k[0] + g64 * k_strides[1], k[1] + g64 * k_strides[5], v[0] + g64 * v_strides[1], v[1] + g64 * v_strides[5])
    return heads, k_strides, v_strides, k[2] + b64 * k_strides[8] + g64 * k_strides[11]


@triton.jit
def place(keys, n, span, MASKED: tl.constexpr):
    """Of rows n [N] of one page: the page, the rows within it, and whether they are read."""
    return keys[3], (n % PAGE).to(tl.int64), (n >= span[0]) & (n < span[1])


@triton.jit
def stream(b_q, first, last, lo, hi, at, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    """Listed keys [first, last) in one loop, masked throughout."""
    acc, m, l = nothing(b_q.shape[0], BLOCK_DV)
    span = tile_range(lo, hi, FAR)
    for n in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        at_entry = n // PAGE
        entry = tl.load(keys[3] + at_entry)
        j0 = (entry & FAR).to(tl.int32) * PAGE + (n - at_entry * PAGE)
        j = (j0 + tl.arange(0, BLOCK_N))[None, :]
        page = (keys[0], keys[1], keys[2], entry >> 32)
        acc, m, l = visit(acc, m, l, b_q, (j >= lo) & (j < hi), j0, span, at, page, env, D, DV, BLOCK_N, True, UPCAST)
    return acc, m, l
