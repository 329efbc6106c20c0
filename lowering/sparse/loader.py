"""The loader of the Hopper kernel with a threshold: K of each tile of keys, and V of those that a warpgroup has asked for

As `load` of `hopper/kernel.py`, whose place this takes. V of a tile comes when it is known who needs it, while K of the next
ones is on its way: the ring of k is a stage longer than it is behind. An item ends with the values of its last tiles, which
those who multiply wait for before they begin another.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..hopper.kernel import AHEAD, load_tile
from ..hopper.messages import receive
from ..hopper.tiles import slot
from .inward import list_of, place
from .told import asked


@gluon.jit
def load_values(v, b_v, bars, use, where):
    """V of a use of the ring of k where it is needed; who does not need it waits for nothing."""
    full, empty = bars[2]
    needed = asked(bars, use)
    if needed > 0:
        load_tile(v, b_v, bars[2], use, where[0], where[1], where[2], 1)
    else:
        at, phase = slot(use, full.shape[0])
        mbarrier.wait(empty.index(at), phase ^ 1)
        mbarrier.arrive(full.index(at))


@gluon.jit
def load(descs, bufs, bars, items, lists, sizes, GROUP: gl.constexpr):
    """For each tile of keys K, then V of the tile that is BEHIND tiles before; Q for each item."""
    q, k, v = descs
    b_q, b_k, b_v = bufs
    BLOCK_N: gl.constexpr = b_k[0].shape[3]
    QUERIES: gl.constexpr = bars[0][0].shape[0]
    BEHIND: gl.constexpr = bars[1][0].shape[0] - 1
    WARPGROUPS: gl.constexpr = b_q[0].shape[0] // QUERIES
    use = 0
    n = 0
    item = receive(items, 0)
    while item[7] > 0:
        b = item[0]
        h = item[1]
        count = item[7]
        p_list = list_of(lists, n, item, sizes)
        nearly = gl.maximum(count - AHEAD, 0)
        for t in range(count + BEHIND):
            mbarrier.arrive(items[3], pred=t == nearly)
            if t < count:
                if QUERIES > 1 and t == 0:
                    load_tile(q, b_q, bars[0], n, b, h, item[2], WARPGROUPS)
                load_tile(k, b_k, bars[1], use + t, b, h // GROUP, place(item, t, p_list, sizes, BLOCK_N), 1)
                if QUERIES == 1 and t == 0:
                    load_tile(q, b_q, bars[0], n, b, h, item[2], WARPGROUPS)
            if t >= BEHIND:
                j0 = place(item, t - BEHIND, p_list, sizes, BLOCK_N)
                load_values(v, b_v, bars, use + t - BEHIND, (b, h // GROUP, j0))
        use += count
        n += 1
        item = receive(items, n)
