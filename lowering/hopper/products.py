"""Tiles of the Hopper kernel in shared memory, and what is begun of them: scores, and values made clean

Shapes: q [64, D], k [BLOCK_N, D], both perhaps in two tiles of columns; v [BLOCK_N, DV]; s [64, BLOCK_N].
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma

from .messages import await_clean, say_clean
from .rings import flat
from .tiles import slot


@gluon.jit
def scores(b_q, b_k, q_at, at):
    """s [64, N] = q kT, begun but not awaited."""
    BLOCK_N: gl.constexpr = b_k[0].shape[3]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    s = gl.zeros([64, BLOCK_N], gl.float32, layout)
    s = warpgroup_mma(flat(b_q[0], q_at), flat(b_k[0], at).permute([1, 0]), s, use_acc=False, is_async=True)
    if len(b_q) > 1:
        s = warpgroup_mma(flat(b_q[1], q_at), flat(b_k[1], at).permute([1, 0]), s, is_async=True)
    return s


@gluon.jit
def clean(wg: gl.constexpr, bufs, bars, use, j0, item, S):
    """Zeroes the rows of a tile of v that no row sees: their weight is 0, but they may hold NaN. TMA has those beyond S.

    One warpgroup does so, and the others wait for it: every warpgroup comes here for the same tiles.
    """
    begin = item[3]
    end = item[4]
    b_v = bufs[2][0]
    BLOCK_N: gl.constexpr = b_v.shape[3]
    if (j0 < begin) | ((j0 + BLOCK_N > end) & (end < S)):
        DV: gl.constexpr = b_v.shape[4]
        WARPGROUPS: gl.constexpr = bufs[0][0].shape[0] // bars[0][0].shape[0]
        at, phase = slot(use, bars[2][0].shape[0])
        if wg == 0:
            mbarrier.wait(bars[2][0].index(at), phase)
            layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DV, DV // 8], [4, 1], [1, 0])
            j = j0 + gl.arange(0, BLOCK_N, gl.SliceLayout(1, layout))
            tile = flat(b_v, at)
            tile.store(gl.where(((j >= begin) & (j < end))[:, None], tile.load(layout), 0.0))
            fence_async_shared()
            say_clean(at, WARPGROUPS)
        else:
            await_clean(at, WARPGROUPS)
