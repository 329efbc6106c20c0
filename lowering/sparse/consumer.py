"""acc = sum_{t kept} p_t v_t, the consumer of the Hopper kernel with a threshold: 64 rows of each item, tiles met inward

As `hopper/multiply.py`, whose places these take, with what `decide.py` carries from step to step.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma_wait

from ..hooks import HAS_LO
from ..hopper.messages import ITEMS, receive
from ..hopper.multiply import rows_of
from ..hopper.products import clean
from ..hopper.results import factor, store
from ..hopper.tiles import slot
from ..hopper.weigh import thread_sums
from .decide import begin, last_values, step
from .inward import list_of, place
from .vote import smallest, vote


@gluon.jit
def first_tile(wg: gl.constexpr, block, n, use, item, j0, rows, least):
    """Of an item's first tile: its logits [64, N], the greatest of each row [64], if it is needed; m, l and y before it."""
    bufs, bars, sizes, env, _to = block
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    layout: gl.constexpr = rows[1].type.layout
    nothing = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, layout))
    row = item[2] + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout))
    y = gl.where(row < sizes[1], nothing, float("inf"))             # a row past the last one needs nothing
    q_at, q_phase = slot(n, bars[0][0].shape[0])
    mbarrier.wait(bars[0][0].index(q_at), q_phase)
    s = warpgroup_mma_wait(0, [begin(wg, bufs, bars, n, use)])
    mbarrier.arrive(bars[1][1].index(use % bars[1][0].shape[0]))
    a, highest, needed, y = vote(wg, bars, use, s, j0, rows, y, least, env, BLOCK_N, True)
    clean(wg, bufs, bars, use, j0, item, sizes[2])
    return (a, highest, needed), (nothing, thread_sums(gl.zeros([64, BLOCK_N], gl.float32, layout)), y)


@gluon.jit
def other_tiles(wg: gl.constexpr, block, n, use, item, p_list, rows, before, sums, acc, least):
    """The same, and acc, with the tiles of an item after its first."""
    bufs, bars, sizes, env, _to = block
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    count = item[7]
    right = 1 + item[5]
    left = right + count - item[6]
    for region in gl.static_range(3 if HAS_LO else 2):
        for t in range((1, right, left)[region], (right, left, count)[region]):
            j0 = place(item, t, p_list, sizes, BLOCK_N)
            before, sums, acc = step(wg, bufs, bars, n, use + t, j0, rows, before, sums, acc, least, env, region != 1)
            if region != 1:
                clean(wg, bufs, bars, use + t, j0, item, sizes[2])
    return before, sums, acc


@gluon.jit
def multiply(wg: gl.constexpr, bufs, bars, items, lists, sizes, env, to, PING_PONG: gl.constexpr, OVERLAP: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item. Warpgroups take no turns: who leaves a tile out would wait."""
    block = (bufs, bars, sizes, env, to)
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    BLOCK_DV: gl.constexpr = bufs[2][0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    use = 0
    n = 0
    item = receive(items, 0)
    while item[7] > 0:
        count = item[7]
        p_list = list_of(lists, n, item, sizes)
        rows = rows_of(item, wg, sizes, env, s_layout)
        least = smallest(count, env, BLOCK_N)
        j0 = place(item, 0, p_list, sizes, BLOCK_N)
        before, sums = first_tile(wg, block, n, use, item, j0, rows, least)
        acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
        before, sums, acc = other_tiles(wg, block, n, use, item, p_list, rows, before, sums, acc, least)
        mbarrier.arrive(bars[0][1].index(n % bars[0][1].shape[0]))
        mbarrier.arrive(items[2].index(n % ITEMS))
        m, l, acc = last_values(bufs, bars, use + count - 1, before, sums, acc)
        scale = gl.convert_layout(factor(m, l, rows[0], env), gl.SliceLayout(1, o_layout))
        store(to, wg, item[0], item[1], item[2] + wg * 64, (acc * scale[:, None]).to(bufs[2][0].dtype))
        use += count
        n += 1
        item = receive(items, n)
    tma.store_wait(0)
