"""acc = sum_j p_j v_j, the consumer of the Hopper kernel: 64 rows of each item against its live tiles of keys

The first tile of an item is taken up beside the values of the last of the item before, so that the tensor cores do not wait
between items (`step.py`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .classed import list_of
from .messages import ITEMS, leave_turn, receive, take_turn
from .plan import place
from .products import clean
from .rescale import rescaled
from .results import factor, store
from .step import last_values, step
from .tiles import hull
from .weigh import pack, thread_sums


@gluon.jit
def rows_of(item, wg: gl.constexpr, sizes, env, layout: gl.constexpr):
    """Of a warpgroup: (b, h, i [64, 1]), lo and hi [64, 1]."""
    i = gl.minimum(item[2] + wg * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout)), sizes[1] - 1)[:, None]
    lo, hi = hull(item[0], item[1], i, sizes[2], env)
    return (item[0], item[1], i), lo, hi


@gluon.jit
def first_tile(wg: gl.constexpr, block, n, use, item, j0, rows, before, packed, acc, PING_PONG: gl.constexpr,
               OVERLAP: gl.constexpr):
    """m [64], l [64, 4] and packed weights of an item's first tile.

    Stores acc of the item before: before = (b, h, row), its scale.
    """
    bufs, bars, sizes, env, to = block
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    layout: gl.constexpr = rows[1].type.layout
    m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, layout))
    l = thread_sums(gl.zeros([64, BLOCK_N], gl.float32, layout))
    m, l, packed, acc, _none = step(wg, bufs, bars, n, use, j0, rows, m, l, packed, acc, env, True, True, PING_PONG, OVERLAP)
    if use > 0:
        done, scale = before
        store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(bufs[2][0].dtype))
    clean(wg, bufs, bars, use, j0, item, sizes[2])
    return m, l, packed


@gluon.jit
def other_tiles(wg: gl.constexpr, block, n, use, item, p_list, rows, packed, acc, m, l, PING_PONG: gl.constexpr,
                OVERLAP: gl.constexpr):
    """packed, acc, m, l with the tiles of an item after its first: those at an edge, then those seen whole."""
    bufs, bars, sizes, env, _to = block
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    edges = item[6]
    count = item[7]
    for region in gl.static_range(2):
        for t in range(1 if region == 0 else gl.maximum(edges, 1), edges if region == 0 else count):
            j0 = place(item, t, p_list, sizes, BLOCK_N)
            m, l, packed, acc, shrink = step(wg, bufs, bars, n, use + t, j0, rows, m, l, packed, acc, env, False,
                                             region == 0, PING_PONG, OVERLAP)
            acc = rescaled(acc, shrink)
            if region == 0:
                clean(wg, bufs, bars, use + t, j0, item, sizes[2])
    return packed, acc, m, l


@gluon.jit
def multiply(wg: gl.constexpr, bufs, bars, items, lists, sizes, env, to, PING_PONG: gl.constexpr, OVERLAP: gl.constexpr):
    """A consumer: rows 64 wg .. 64 wg + 63 of each item."""
    block = (bufs, bars, sizes, env, to)
    WARPGROUPS: gl.constexpr = to[1].shape[0]
    BLOCK_N: gl.constexpr = bufs[1][0].shape[3]
    BLOCK_DV: gl.constexpr = bufs[2][0].shape[4]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_DV, 16])
    kind: gl.constexpr = bufs[2][0].dtype
    use = 0
    n = 0
    packed = pack(gl.zeros([64, BLOCK_N], gl.float32, s_layout), kind)
    acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
    scale = gl.zeros([64], gl.float32, gl.SliceLayout(1, o_layout))
    done = (sizes[0] * 0, sizes[0] * 0, sizes[0] * 0)
    item = receive(items, 0)
    if PING_PONG and wg == WARPGROUPS - 1:
        leave_turn(wg, WARPGROUPS)
    while item[7] > 0:
        count = item[7]
        p_list = list_of(lists, n, item, sizes)
        rows = rows_of(item, wg, sizes, env, s_layout)
        j0 = place(item, 0, p_list, sizes, BLOCK_N)
        m, l, packed = first_tile(wg, block, n, use, item, j0, rows, (done, scale), packed, acc, PING_PONG, OVERLAP)
        acc = gl.zeros([64, BLOCK_DV], gl.float32, o_layout)
        packed, acc, m, l = other_tiles(wg, block, n, use, item, p_list, rows, packed, acc, m, l, PING_PONG, OVERLAP)
        mbarrier.arrive(bars[0][1].index(n % bars[0][1].shape[0]))
        mbarrier.arrive(items[2].index(n % ITEMS))
        scale = gl.convert_layout(factor(m, l, rows[0], env), gl.SliceLayout(1, o_layout))
        done = (item[0], item[1], item[2])
        use += count
        n += 1
        item = receive(items, n)

    acc = last_values(bufs, bars, use - 1, packed, acc)
    if PING_PONG and wg == 0:
        take_turn(wg)
    store(to, wg, done[0], done[1], done[2] + wg * 64, (acc * scale[:, None]).to(kind))
    tma.store_wait(0)
