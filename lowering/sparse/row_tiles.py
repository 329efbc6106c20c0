"""The tile of rows of a program that chooses tiles of keys, as `prefill` has them, and the keys that its rows see"""

import triton
import triton.language as tl

from ..scan import hull, samples, segments, tile_range


@triton.jit
def tile_of(pid, H, T, S, env, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """b, h, row [M]; hull lo, hi [M, 1]; `segments` of the keys."""
    tiles = tl.cdiv(T, BLOCK_M)
    h = pid // tiles % H
    b = pid // tiles // H
    row = (tiles - 1 - pid % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)                          # [M]
    i = tl.minimum(row, T - 1)[:, None]
    lo, hi = hull(b, h, i, S, env, BLOCK_M)
    begin, end = tile_range(lo, hi, S)
    first = begin // BLOCK_N * BLOCK_N
    start, inner, outer, stop = segments(first, end, lo, hi, S, (b, h, samples(i, BLOCK_M)), env, BLOCK_N)
    return b, h, row, lo, hi, start, inner, outer, stop
