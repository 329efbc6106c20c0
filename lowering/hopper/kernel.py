"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      a = score(q[b,h,i,:] . k[b,h//GROUP,j,:])

FlashAttention-3 (Shah et al., 2024) for Hopper: one warp plans, one loads tiles by TMA into rings of STAGES in shared memory,
BLOCK_M / 64 warpgroups of 64 rows each multiply. A warpgroup issues the scores of the next tile, then the values of this one,
and computes the next weights while the values are summed; weights stay in registers, as the left operand.
Shapes: q [B, H, T, D]; k [B, H/GROUP, S, D]; v [B, H/GROUP, S, DV]; out [B, H, T, DV]; unit stride in D, others by 16 bytes.
q, k hold the first BLOCK_D columns, q_rest, k_rest the BLOCK_REST after them: 192 = 128 + 64.
Grid: as many blocks as processors, or as items of work; `plan.py`. counter: int32, 0 before and after. lists: int32, `room` for
each of ITEMS messages of a block, where tiles are classed.
Traffic: (D + DV) * itemsize bytes per query, and per key of the live tiles. FLOPs: 2 (D + DV) per visible (i, j).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..hooks import HAS_TILE
from .classed import list_of
from .messages import channel, receive
from .multiply import multiply
from .plan import place, plan
from .rings import ring, space
from .tiles import slot

AHEAD = gl.constexpr(2)
AHEAD_LISTED = gl.constexpr(8)                                      # a list takes the planner as long as some tiles


@gluon.jit
def rings(QUERIES: gl.constexpr, KEY_STAGES: gl.constexpr, STAGES: gl.constexpr, WARPGROUPS: gl.constexpr):
    """The barriers of the tiles of q, of k and of v."""
    return ring(QUERIES, WARPGROUPS), ring(KEY_STAGES, WARPGROUPS), ring(STAGES, WARPGROUPS)


@gluon.jit
def load_tile(descs, bufs, bars, use, b, h, row, PARTS: gl.constexpr):
    """PARTS tiles of rows, from `row` on, of one head, into a slot of a ring; the columns in one tile or in two."""
    full, empty = bars
    at, phase = slot(use, full.shape[0])
    ROWS: gl.constexpr = descs[0].block_type.shape[2]
    COLUMNS: gl.constexpr = descs[0].block_type.shape[3]
    mbarrier.wait(empty.index(at), phase ^ 1)
    bar = full.index(at)
    mbarrier.expect(bar, PARTS * (descs[0].block_type.nbytes + (descs[1].block_type.nbytes if len(descs) > 1 else 0)))
    for part in gl.static_range(PARTS):
        tma.async_copy_global_to_shared(descs[0], [b, h, row + part * ROWS, 0], bar, bufs[0].index(at * PARTS + part))
        if len(descs) > 1:
            tma.async_copy_global_to_shared(descs[1], [b, h, row + part * ROWS, COLUMNS], bar, bufs[1].index(at * PARTS + part))


@gluon.jit
def load(descs, bufs, bars, items, lists, sizes, GROUP: gl.constexpr):
    """The loader: for each tile of keys K, then V of the tile before, which is needed that much later; Q for each item."""
    q, k, v = descs
    b_q, b_k, b_v = bufs
    q_bars, k_bars, v_bars = bars
    BLOCK_N: gl.constexpr = b_k[0].shape[3]
    QUERIES: gl.constexpr = q_bars[0].shape[0]
    WARPGROUPS: gl.constexpr = b_q[0].shape[0] // QUERIES
    use = 0
    n = 0
    before = (sizes[0] * 0, sizes[0] * 0, sizes[0] * 0)
    item = receive(items, 0)
    while item[7] > 0:
        b = item[0]
        h = item[1]
        count = item[7]
        p_list = list_of(lists, n, item, sizes)
        nearly = gl.maximum(count - (AHEAD_LISTED if HAS_TILE else AHEAD), 0)
        for t in range(count):
            mbarrier.arrive(items[3], pred=t == nearly)
            j0 = place(item, t, p_list, sizes, BLOCK_N)
            if QUERIES > 1 and t == 0:
                load_tile(q, b_q, q_bars, n, b, h, item[2], WARPGROUPS)
            load_tile(k, b_k, k_bars, use, b, h // GROUP, j0, 1)
            if use > 0:
                load_tile(v, b_v, v_bars, use - 1, before[0], before[1], before[2], 1)
            if QUERIES == 1 and t == 0:                             # its slot is free when all values before have been summed
                load_tile(q, b_q, q_bars, n, b, h, item[2], WARPGROUPS)
            before = (b, h // GROUP, j0)
            use += 1
        n += 1
        item = receive(items, n)
    load_tile(v, b_v, v_bars, use - 1, before[0], before[1], before[2], 1)


@gluon.jit(do_not_specialize=["H", "T", "S", "tiles", "section", "work", "room"])
def hopper(q, q_rest, k, k_rest, v, out, counter, lists, H, T, S, tiles, section, work, room,
           operands, GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
           BLOCK_D: gl.constexpr, BLOCK_REST: gl.constexpr, KEY_STAGES: gl.constexpr, STAGES: gl.constexpr,
           QUERIES: gl.constexpr, PING_PONG: gl.constexpr, OVERLAP: gl.constexpr, REGISTERS: gl.constexpr, FEW: gl.constexpr):
    env = operands
    WARPGROUPS: gl.constexpr = BLOCK_M // 64
    descs = ((q,), (k,), (v,))
    bufs = ((space(q, QUERIES * WARPGROUPS),), (space(k, KEY_STAGES),), (space(v, STAGES),))
    if BLOCK_REST:
        descs = ((q, q_rest), (k, k_rest), (v,))  # type: ignore[assignment]
        bufs = ((bufs[0][0], space(q_rest, QUERIES * WARPGROUPS)), (bufs[1][0], space(k_rest, KEY_STAGES)), bufs[2])  # type: ignore[assignment]
    bars = rings(QUERIES, KEY_STAGES, STAGES, WARPGROUPS)
    items = channel(WARPGROUPS)
    fence_async_shared()
    sizes = (H, T, S, tiles, section, work, room)
    to = (out, space(out, WARPGROUPS))
    if WARPGROUPS == 2:
        gl.warp_specialize([
            (multiply, (0, bufs, bars, items, lists, sizes, env, to, PING_PONG, OVERLAP)),
            (multiply, (1, bufs, bars, items, lists, sizes, env, to, PING_PONG, OVERLAP)),
            (load, (descs, bufs, bars, items, lists, sizes, GROUP)),
            (plan, (items, counter, lists, sizes, env, BLOCK_M, BLOCK_N)),
        ], [4, 1, 1], [REGISTERS, FEW, FEW])
    else:
        gl.warp_specialize([
            (multiply, (0, bufs, bars, items, lists, sizes, env, to, PING_PONG, OVERLAP)),
            (multiply, (1, bufs, bars, items, lists, sizes, env, to, PING_PONG, OVERLAP)),
            (multiply, (2, bufs, bars, items, lists, sizes, env, to, PING_PONG, OVERLAP)),
            (load, (descs, bufs, bars, items, lists, sizes, GROUP)),
            (plan, (items, counter, lists, sizes, env, BLOCK_M, BLOCK_N)),
        ], [4, 4, 1, 1], [REGISTERS, REGISTERS, FEW, FEW])
