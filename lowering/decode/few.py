"""out[b,h,i,:] = sum_j exp(a_j) v[j,:] / sum_j exp(a_j) of quantised pages, for 16 rows at most: who does what

GROUPS of four warps take the key tiles of the part in turn (`few_tiles.py`), and what they have of an item is joined at its end
(`few_join.py`); a warp loads (`pages.py`). Shapes: packed = ((codes, scales) of K, of V, positions), rings as `packed.py` has
them. Traffic: D + DV + 8 bytes a key; shared memory is written and read once.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from ..hooks import HAS_LO
from ..hopper.tiles import hull, least, most, uniform
from .balance import keys_of
from .consumer import fill_queries, share_of
from .early import pass_over
from .few_join import FEW_ROWS, GROUPS, finish_few, joining_places
from .few_tiles import attend_few, queries_of
from .pages import load
from .parts import rows_of


@gluon.jit
def attend_few_part(g: gl.constexpr, tensors, b_q, packed, bars, joining, nth, use, line, part, item, before, count, T, S,
                    items, FEW, env, D: gl.constexpr, DV: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
                    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr,
                    ROWS: gl.constexpr):
    """`count` key tiles of an item, the nth of this program: those after the first `before`, in the rings from `use` on."""
    layout: gl.constexpr = gl.SliceLayout(0, gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8]))
    b = item // items
    x = item - b * items
    start = uniform(keys_of(line, b)[0])
    fill_queries(b_q, tensors[0], tensors[1], b, x, T, 0, D, GROUP, BLOCK_M, BLOCK_T)
    h, i, _m = rows_of(x, 0, T, GROUP, BLOCK_M, BLOCK_T, FEW_ROWS, gl.SliceLayout(1, layout))
    lo, hi = hull(b, h, i, S, env)
    span = (uniform(least(gl.where(lo < hi, lo, S))) if HAS_LO else start, uniform(most(gl.where(lo < hi, hi, 0))))
    at = (b, gl.expand_dims(h, 0), gl.expand_dims(i, 0))
    sums = attend_few(g, queries_of(b_q), packed, bars, use, start + before * BLOCK_N, count, at, lo, hi, span, env, STAGES,
                      BLOCK_N)
    finish_few(g, tensors, sums, joining, nth, line, part, item, T, items, FEW, env, DV, GROUP, BLOCK_M, BLOCK_T, BLOCK_R, ROWS)


@gluon.jit
def consume_few(g: gl.constexpr, tensors, b_q, packed, bars, joining, sizes, env, D: gl.constexpr, DV: gl.constexpr,
                GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
                BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """One of GROUPS: its tiles of the items of the part."""
    _B, _H, T, S, FEW = sizes
    items, line, part, item, before, left, use = share_of(sizes, env, GROUP, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)
    if (g == 0) & (use > 0):
        pass_over(bars)
    nth = left * 0
    while left > 0:
        count = gl.minimum(uniform(keys_of(line, item // items)[1]) - before, left)
        attend_few_part(g, tensors, b_q.index(g), packed, bars, joining, nth, use, line, part, item, before, count, T, S, items,
                        FEW, env, D, DV, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_T, BLOCK_R, ROWS)
        use += count
        left -= count
        item += 1
        nth += 1
        before = 0


@gluon.jit
def attend_in_registers(k, v, table, tensors, packed, packed_bars, sizes, env, D: gl.constexpr, DV: gl.constexpr,
                        GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
                        BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    """The roles: GROUPS that multiply, a warp that loads."""
    kind: gl.constexpr = tensors[0].dtype.element_ty
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    b_q = gl.allocate_shared_memory(kind, [GROUPS, FEW_ROWS, packed[0][0].shape[4]], plain)
    joining = joining_places(packed[1][0].shape[4] // 2)
    fence_async_shared()
    gl.warp_specialize([
        (consume_few, (0, tensors, b_q, packed, packed_bars, joining, sizes, env, D, DV, GROUP, STAGES, BLOCK_M, BLOCK_N,
                       BLOCK_B, BLOCK_T, BLOCK_R, ROWS)),
        (consume_few, (1, tensors, b_q, packed, packed_bars, joining, sizes, env, D, DV, GROUP, STAGES, BLOCK_M, BLOCK_N,
                       BLOCK_B, BLOCK_T, BLOCK_R, ROWS)),
        (load, (k, v, table, packed, packed_bars, sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B, BLOCK_T)),
    ], [4, 1], [216, 72])
