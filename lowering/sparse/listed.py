"""o = sum over the listed tiles and those at the edges        `scan` where tiles were chosen beforehand

The first tile and those that a row sees in part come first, then the list, whose tiles every row sees wholly, in its order.
Tiles are weighed as by a threshold, whose limit is -inf where nothing more is to be left out.
"""

import triton
import triton.language as tl

from ..hooks import limit, tiles_listed
from ..scan import nothing, segments
from .scan import weigh, weigh_left, weigh_right


@triton.jit
def scan(b_q, first, last, span, lo, hi, S, at, rows, keys, env, D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_DV: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr):
    """acc [M, DV] float32, m [M], l [M] of the keys [first, last) that are kept; arguments as of the plain `scan`."""
    acc, m, l = nothing(b_q.shape[0], BLOCK_DV)
    y = tl.full([b_q.shape[0]], float("-inf"), tl.float32)
    least = limit(env)
    start, inner, outer, stop = segments(first, last, lo, hi, S, rows, env, BLOCK_N)
    acc, m, l, y = weigh_right(acc, m, l, y, b_q, start, outer, stop, span, least, lo, hi, S, at, rows, keys, env, D, DV,
                               BLOCK_N, UPCAST)
    p_tile, count = tiles_listed(tl.program_id(0), env)
    for n in tl.range(0, count, num_stages=STAGES):
        j0 = tl.load(p_tile + n).to(tl.int32) * BLOCK_N
        acc, m, l, y = weigh(acc, m, l, y, b_q, True, j0, span, least, at, keys, env, D, DV, BLOCK_N, False, True, UPCAST)
    acc, m, l, y = weigh_left(acc, m, l, y, b_q, start, inner, span, least, lo, hi, S, at, rows, keys, env, D, DV, BLOCK_N,
                              UPCAST)
    return acc, m, l
