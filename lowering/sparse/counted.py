"""kept[item, tile] = 3 where p.v of a tile was computed, 2 where q.k alone was        in a kernel that keeps an account

An item is a tile of rows of one head or, where the rows of a group are packed, of one KV head: row r = g * T + i of the group.
"""

import triton
import triton.language as tl

from ..hooks import account


@triton.jit
def counted(at, j0, computed, env, BLOCK_N: tl.constexpr):
    """Notes the tile of keys j0 .. j0 + N of rows at = (b, h, i); `computed`: whether its p.v is."""
    b, h, i = at
    kept, heads, rows, columns, group, T = account(env)
    packed = (h + i - i) % group * T + i                                                       # [M, 1]
    item = (b * heads + tl.min(h + i - i) // group) * rows + tl.min(packed) // i.shape[0]
    tl.store(kept + item.to(tl.int64) * columns + j0 // BLOCK_N, computed.to(tl.uint8) + 2)
