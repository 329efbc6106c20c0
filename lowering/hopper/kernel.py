"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      a = score(q[b,h,i,:] . k[b,h//GROUP,j,:])

FlashAttention-3 (Shah et al., 2024) for Hopper: one warp loads tiles by TMA into rings of STAGES in shared memory, two
warpgroups of 64 rows each multiply. A warpgroup issues the scores of the next tile, then the values of this one, and
computes the next weights while the values are summed; weights stay in registers, as the left operand.
Shapes: q [B, H, T, D]; k [B, H/GROUP, S, D]; v [B, H/GROUP, S, DV]; out [B, H, T, DV]; unit stride in D, others by 16 bytes.
q, k hold the first BLOCK_D columns, q_rest, k_rest the BLOCK_REST after them: 192 = 128 + 64.
Grid: as many blocks as processors, or as items of work; `tiles.py`.
Traffic: (D + DV) * itemsize bytes per query, and per key of the tile's hull. FLOPs: 2 (D + DV) per visible (i, j).

Barriers. A ring has two per slot: `full` (1 arrival, by TMA) and `empty` (one arrival a warpgroup). Use n of a ring is slot
n % STAGES, and its phase n // STAGES % 2: who reads waits for full at the phase, who writes for empty at the other, which a
new barrier lets pass. Q is a ring of one slot. With PING_PONG, warpgroup w issues products when it has the turn: it waits at
turn[w] and arrives at turn[w + 1]; the first finds its own open.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from .multiply import multiply
from .tiles import WARPGROUPS, item, key_range, rounds, slot


@gluon.jit
def load_tile(descs, bufs, bars, use, b, h, row, STAGES: gl.constexpr, BLOCK_D: gl.constexpr, REST: gl.constexpr):
    """Rows from `row` on of one head into a slot of a ring [STAGES, 1, 1, rows, BLOCK_D]; with REST into two."""
    full, empty = bars
    at, phase = slot(use, STAGES)
    mbarrier.wait(empty.index(at), phase ^ 1)
    bar = full.index(at)
    mbarrier.expect(bar, descs[0].block_type.nbytes + (descs[1].block_type.nbytes if REST else 0))
    tma.async_copy_global_to_shared(descs[0], [b, h, row, 0], bar, bufs[0].index(at))
    if REST:
        tma.async_copy_global_to_shared(descs[1], [b, h, row, BLOCK_D], bar, bufs[1].index(at))


@gluon.jit
def load_queries(descs, bufs, bars, use, b, h, row, BLOCK_D: gl.constexpr, REST: gl.constexpr):
    """The rows of an item, 64 for each warpgroup, under one barrier."""
    full, empty = bars
    mbarrier.wait(empty.index(0), use % 2 ^ 1)
    bar = full.index(0)
    mbarrier.expect(bar, WARPGROUPS * (descs[0].block_type.nbytes + (descs[1].block_type.nbytes if REST else 0)))
    for wg in gl.static_range(WARPGROUPS):
        tma.async_copy_global_to_shared(descs[0], [b, h, row + wg * 64, 0], bar, bufs[0].index(wg))
        if REST:
            tma.async_copy_global_to_shared(descs[1], [b, h, row + wg * 64, BLOCK_D], bar, bufs[1].index(wg))


@gluon.jit
def load(descs, bufs, bars, sizes, env, GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
         BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_REST: gl.constexpr):
    """The producer: for each item Q once, for each tile of keys K, then V of the tile before: V is needed that much later."""
    q, k, v = descs
    b_q, b_k, b_v = bufs
    q_bars, k_bars, v_bars = bars
    H, T, S, tiles, section, work = sizes
    use = 0
    for turn in range(rounds(work)):
        b, h, row = item(turn, H, tiles, section, BLOCK_M)
        _begin, _end, first, count = key_range(b, h, row, T, S, env, BLOCK_M, BLOCK_N)
        last = first + (count - 1) * BLOCK_N
        load_tile(k, b_k, k_bars, use, b, h // GROUP, last, STAGES, BLOCK_D, BLOCK_REST)
        load_queries(q, b_q, q_bars, turn, b, h, row, BLOCK_D, BLOCK_REST)
        for at in range(1, count):
            load_tile(k, b_k, k_bars, use + at, b, h // GROUP, last - at * BLOCK_N, STAGES, BLOCK_D, BLOCK_REST)
            load_tile(v, b_v, v_bars, use + at - 1, b, h // GROUP, last - (at - 1) * BLOCK_N, STAGES, BLOCK_D, 0)
        load_tile(v, b_v, v_bars, use + count - 1, b, h // GROUP, first, STAGES, BLOCK_D, 0)
        use += count


@gluon.jit
def ring(STAGES: gl.constexpr):
    """full, empty: the barriers of a ring."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(STAGES):
        mbarrier.init(full.index(at), count=1)
        mbarrier.init(empty.index(at), count=WARPGROUPS)
    return full, empty


@gluon.jit
def space(desc, STAGES: gl.constexpr):
    """A ring of tiles of a descriptor."""
    ROWS: gl.constexpr = desc.block_type.shape[2]
    COLUMNS: gl.constexpr = desc.block_type.shape[3]
    return gl.allocate_shared_memory(desc.dtype, [STAGES, 1, 1, ROWS, COLUMNS], desc.layout)


@gluon.jit(do_not_specialize=["H", "T", "S", "tiles", "section", "work"])
def hopper(q, q_rest, k, k_rest, v, out, out_strides, H, T, S, tiles, section, work,
           operands, DV: gl.constexpr, GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
           BLOCK_D: gl.constexpr, BLOCK_REST: gl.constexpr, STAGES: gl.constexpr, PING_PONG: gl.constexpr):
    env = operands
    wide = (space(q, WARPGROUPS), space(k, STAGES), space(v, STAGES))
    descs = ((q,), (k,), (v,))
    bufs = ((wide[0],), (wide[1],), (wide[2],))
    if BLOCK_REST:
        descs = ((q, q_rest), (k, k_rest), (v,))  # type: ignore[assignment]
        bufs = ((wide[0], space(q_rest, WARPGROUPS)), (wide[1], space(k_rest, STAGES)), (wide[2],))  # type: ignore[assignment]
    bars = (ring(1), ring(STAGES), ring(STAGES))
    turn_bars = gl.allocate_shared_memory(gl.int64, [WARPGROUPS, 1], mbarrier.MBarrierLayout())
    for wg in gl.static_range(WARPGROUPS):
        mbarrier.init(turn_bars.index(wg), count=1)
    fence_async_shared()
    sizes = (H, T, S, tiles, section, work)
    to = (out, out_strides)
    gl.warp_specialize([
        (multiply, (0, bufs, bars, turn_bars, sizes, env, to, STAGES, BLOCK_M, BLOCK_N, BLOCK_REST, DV, PING_PONG)),
        (multiply, (1, bufs, bars, turn_bars, sizes, env, to, STAGES, BLOCK_M, BLOCK_N, BLOCK_REST, DV, PING_PONG)),
        (load, (descs, bufs, bars, sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_REST)),
    ], [4, 1], [240, 24])
