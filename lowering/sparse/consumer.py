"""acc = sum_{t kept} p_t v_t, the consumer of the Hopper kernel with a threshold: 64 rows of each item, tiles met inward

As `hopper/multiply.py`, whose places these take, with what `decide.py` carries from step to step.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..hooks import HAS_LO
from ..hopper.messages import ITEMS, receive
from ..hopper.multiply import rows_of
from ..hopper.products import clean
from ..hopper.rescale import rescaled
from ..hopper.results import factor, store
from ..hopper.weigh import pack, thread_sums
from .decide import last_values, smallest, step
from .inward import list_of, place


@gluon.jit
def first_tile(wg: gl.constexpr, block, n, use, item, j0, rows, before, packed, pending, acc, least):
    """m [64], l [64, 4] and y [64], packed weights and whether there are any of an item's first tile.

    Stores acc of the item before: before = (b, h, row), its scale.
    """
    bufs, bars, sizes, env, to = block
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    layout: gl.constexpr = rows[1].type.layout
    nothing = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, layout))
    row = item[2] + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout))
    y = gl.where(row < sizes[1], nothing, float("inf"))             # a row past the last one needs nothing
    sums = (nothing, thread_sums(gl.zeros([64, BLOCK_N], gl.float32, layout)), y)
    sums, packed, pending, acc, _none = step(wg, bufs, bars, n, use, j0, rows, sums, packed, pending, acc, least, env,
                                             True, True)
    if use > 0:
        done, scale = before
        store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(bufs[2][0].dtype))
    if pending > 0:
        clean(bufs[2][0], bars[2], use, j0, item, sizes[2])
    return sums, packed, pending


@gluon.jit
def other_tiles(wg: gl.constexpr, block, n, use, item, p_list, rows, packed, pending, acc, sums, least):
    """The same and acc, with the tiles of an item after its first."""
    bufs, bars, sizes, env, _to = block
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    count = item[7]
    right = 1 + item[5]
    left = right + count - item[6]
    for region in gl.static_range(3 if HAS_LO else 2):
        for t in range((1, right, left)[region], (right, left, count)[region]):
            j0 = place(item, t, p_list, sizes, BLOCK_N)
            sums, packed, pending, acc, shrink = step(wg, bufs, bars, n, use + t, j0, rows, sums, packed, pending, acc, least,
                                                      env, False, region != 1)
            acc = rescaled(acc, shrink)
            if region != 1 and pending > 0:
                clean(bufs[2][0], bars[2], use + t, j0, item, sizes[2])
    return packed, pending, acc, sums


@gluon.jit
def multiply(wg: gl.constexpr, bufs, bars, items, lists, sizes, env, to, PING_PONG: gl.constexpr, OVERLAP: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item. Warpgroups take no turns: who leaves a tile out would wait."""
    block = (bufs, bars, sizes, env, to)
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    BLOCK_DV: gl.constexpr = bufs[2][0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    kind: gl.constexpr = bufs[2][0].dtype
    use = 0
    n = 0
    pending = sizes[0] * 0
    packed = pack(gl.zeros([64, BLOCK_N], gl.float32, s_layout), kind)
    acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
    scale = gl.zeros([64], gl.float32, gl.SliceLayout(1, o_layout))
    done = (sizes[0] * 0, sizes[0] * 0, sizes[0] * 0)
    item = receive(items, 0)
    while item[7] > 0:
        count = item[7]
        p_list = list_of(lists, n, item, sizes)
        rows = rows_of(item, wg, sizes, env, s_layout)
        least = smallest(count, env, BLOCK_N)
        j0 = place(item, 0, p_list, sizes, BLOCK_N)
        sums, packed, pending = first_tile(wg, block, n, use, item, j0, rows, (done, scale), packed, pending, acc, least)
        acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
        packed, pending, acc, sums = other_tiles(wg, block, n, use, item, p_list, rows, packed, pending, acc, sums, least)
        mbarrier.arrive(bars[0][1].index(n % bars[0][1].shape[0]))
        mbarrier.arrive(items[2].index(n % ITEMS))
        scale = gl.convert_layout(factor(sums[0], sums[1], rows[0], env), gl.SliceLayout(1, o_layout))
        done = (item[0], item[1], item[2])
        use += count
        n += 1
        item = receive(items, n)

    acc = last_values(bufs, bars, use - 1, packed, pending, acc)
    store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(kind))
    tma.store_wait(0)
