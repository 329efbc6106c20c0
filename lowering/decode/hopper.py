"""out[b,h,i,:] = sum_j exp(a_j) v[b,h//GROUP,j,:] / sum_j exp(a_j)      for few queries and many keys, on Hopper

The kernel of `kernel.py` with roles: one warp loads the key tiles of all its items by TMA into rings of STAGES, one after
another, and never waits for an item to end; WARPGROUPS of four warps, 64 rows each, multiply. Starts, ends and merges of items
are hidden behind the tiles that are already on their way.
Shapes, items: as `kernel.py`, always BALANCED, parts as `balance.py`; q and out have unit strides in their last dim; k and v
are descriptors of [B, H/GROUP, S, .] in tiles of BLOCK_N keys. What TMA reads past the live keys has weight 0, and is set to
0 in v. table, table_strides: None; where k and v lie in pages, as `pages.py` has them.
counters: of each item and warpgroup the parts that have arrived; all 0 between launches.
Traffic and FLOPs: as `kernel.py`; products are of 64 rows, however few there are.

Barriers: a ring has two per slot, `full` (1 arrival, by TMA) and `empty` (one a warpgroup), as in `hopper/kernel.py`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..hopper.rings import ring, space
from ..hopper.tiles import slot, uniform
from .balance import divide, keys_of, keys_of_part, row_tiles
from .consumer import consume
from .early import asked_early, await_others


@gluon.jit
def ordinals(N: gl.constexpr):
    """0, 1, ..., N - 1  [N]."""
    return gl.arange(0, N, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))


@gluon.jit
def in_line(x):
    """x [N], as `ordinals` lies."""
    return gl.convert_layout(x, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))


@gluon.jit
def corners(N_B: gl.constexpr, N_T: gl.constexpr):
    """Numbers of sequences [N_B, 1] and of query positions [1, N_T]."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [gl.num_warps(), 1], [1, 0])
    return gl.arange(0, N_B, gl.SliceLayout(1, layout))[:, None], gl.arange(0, N_T, gl.SliceLayout(0, layout))[None, :]


@gluon.jit
def positions():
    """Where those of tiles lie: nowhere, they follow from the line. `sparse/chosen_hopper.py` needs them."""
    return ()


@gluon.jit
def load_tile(desc, buf, bars, use, b, head, row, STAGES: gl.constexpr):
    """Keys row .. row + N of one head into a slot of a ring [STAGES, 1, 1, N, D], once what it held was read."""
    at, phase = slot(use, STAGES)
    mbarrier.wait(bars[1].index(at), phase ^ 1)
    bar = bars[0].index(at)
    mbarrier.expect(bar, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [b, head, row, 0], bar, buf.index(at))


@gluon.jit
def load(k, v, table, rings, bars, sizes, env, GROUP: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
         BLOCK_N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr):
    """The producer: the key tiles of its part, K and V in turn. table: of pages (`pages.py`)."""
    B, H, T, S, FEW = sizes
    tiles = row_tiles(T, GROUP, BLOCK_M, BLOCK_T)
    items = tiles * (H // GROUP)
    part = gl.program_id(0)
    early = asked_early(part, B, items, FEW)
    if early:
        b = part // items
        load_tile(k, rings[0], bars[0], 0, b, (part - b * items) // tiles, 0, STAGES)
        load_tile(v, rings[1], bars[1], 0, b, (part - b * items) // tiles, 0, STAGES)
    line = divide(B, T, S, items, FEW, env, BLOCK_N, BLOCK_B, BLOCK_T)
    item, before, left = keys_of_part(line, part, items, B, FEW)
    item, before, left = uniform(item), uniform(before), uniform(left)
    known = uniform((early & line[4]).to(gl.int32))
    use = early.to(gl.int32) - known
    while left > 0:
        b = item // items
        start, n = keys_of(line, b)
        count = gl.minimum(uniform(n) - before, left)
        head = (item - b * items) // tiles
        first = uniform(start) + before * BLOCK_N
        for t in range(known, count):
            load_tile(k, rings[0], bars[0], use + t, b, head, first + t * BLOCK_N, STAGES)
            load_tile(v, rings[1], bars[1], use + t, b, head, first + t * BLOCK_N, STAGES)
        known = 0
        use += count
        left -= count
        item += 1
        before = 0


@gluon.jit(do_not_specialize=["B", "H", "T", "S", "FEW"])
def decode_hopper(q, q_strides, k, v, table, table_strides, out, out_strides, workspace, counters, B, H, T, S, FEW,
                  operands, D: gl.constexpr, DV: gl.constexpr, GROUP: gl.constexpr, BLOCK_M: gl.constexpr,
                  BLOCK_N: gl.constexpr, STAGES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr,
                  BLOCK_R: gl.constexpr, ROWS: gl.constexpr):
    env = operands
    WARPGROUPS: gl.constexpr = BLOCK_M // 64
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, k.block_type.shape[3]], k.dtype)
    b_q = gl.allocate_shared_memory(k.dtype, [WARPGROUPS, 64, k.block_type.shape[3]], layout)
    rings = (space(k, STAGES), space(v, STAGES), positions())
    bars = (ring(STAGES, WARPGROUPS), ring(STAGES, WARPGROUPS))
    fence_async_shared()
    await_others()
    sizes = (B, H, T, S, FEW)
    tensors = (q, q_strides, out, out_strides, workspace, counters)
    if WARPGROUPS == 1:
        gl.warp_specialize([
            (consume, (0, tensors, b_q, rings, bars, sizes, env, D, DV, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B,
                       BLOCK_T, BLOCK_R, ROWS)),
            (load, (k, v, (table, table_strides), rings, bars, sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B,
                    BLOCK_T)),
        ], [1], [120])
    else:
        gl.warp_specialize([
            (consume, (0, tensors, b_q, rings, bars, sizes, env, D, DV, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B,
                       BLOCK_T, BLOCK_R, ROWS)),
            (consume, (1, tensors, b_q, rings, bars, sizes, env, D, DV, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B,
                       BLOCK_T, BLOCK_R, ROWS)),
            (load, (k, v, (table, table_strides), rings, bars, sizes, env, GROUP, STAGES, BLOCK_M, BLOCK_N, BLOCK_B,
                    BLOCK_T)),
        ], [4, 1], [208, 88])
