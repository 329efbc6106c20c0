"""Whether the values of a tile of keys are needed: what the warpgroups of the Hopper kernel tell the one that loads

A ring of a number for each warp and a barrier for each warpgroup and tile of keys on its way. A warpgroup tells as soon as it
knows; the loader asks one after the other and takes the first yes. It is not told of a tile before it has asked about the one
that had the slot: keys of no more tiles than the ring has slots are on their way.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..hopper.rings import ring
from ..hopper.tiles import slot, uniform


@gluon.jit
def rings(QUERIES: gl.constexpr, KEY_STAGES: gl.constexpr, STAGES: gl.constexpr, WARPGROUPS: gl.constexpr):
    """The barriers of the tiles of q, of k and of v, as of the dense kernel, and what is told."""
    told = gl.allocate_shared_memory(gl.int64, [WARPGROUPS * KEY_STAGES, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(WARPGROUPS * KEY_STAGES):
        mbarrier.init(told.index(at), count=1)
    layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    flags = gl.allocate_shared_memory(gl.int32, [WARPGROUPS * KEY_STAGES, 4], layout)
    return ring(QUERIES, WARPGROUPS), ring(KEY_STAGES, WARPGROUPS), ring(STAGES, WARPGROUPS), (flags, told)


@gluon.jit
def needed_by(flags):
    """Whether one of the four warps of a warpgroup has a row that may need a tile."""
    return uniform(gl.max(flags.load(gl.BlockedLayout([4], [32], [gl.num_warps()], [0])), 0))


@gluon.jit
def tell(bars, wg: gl.constexpr, use, wanted):
    """By a warpgroup: which threads of which rows [64, 4] may need the values of a use of the ring of k; whether any does.

    A number of each warp, one barrier of the four, and the answer is theirs; the loader hears after them.
    """
    KEY_STAGES: gl.constexpr = bars[1][0].shape[0]
    flags, told = bars[3]
    at = wg * KEY_STAGES + use % KEY_STAGES
    flags.index(at).store(gl.max(gl.reshape(wanted.to(gl.int32), [4, 64]), 1))
    needed = needed_by(flags.index(at))
    mbarrier.arrive(told.index(at))
    return needed


@gluon.jit
def asked(bars, use):
    """By the loader: whether one of the warpgroups needs them."""
    KEY_STAGES: gl.constexpr = bars[1][0].shape[0]
    flags, told = bars[3]
    at, phase = slot(use, KEY_STAGES)
    needed = use * 0
    for wg in gl.static_range(flags.shape[0] // KEY_STAGES):
        if needed == 0:
            mbarrier.wait(told.index(wg * KEY_STAGES + at), phase)
            needed = needed_by(flags.index(wg * KEY_STAGES + at))
    return needed
