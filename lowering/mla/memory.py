"""Shared memory of the exchange kernels: latents, queries, weights, statistics, messages, barriers"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.language.extra.cuda import gdc_wait

from .finish import FREE
from .rows import FIELDS, ROWS, place_of, tell, told

READY = gl.constexpr(0)
EARLY = gl.constexpr(1)
"""Barriers: an item's numbers and queries are there; those queries that the first item was likely to have."""


@gluon.jit
def pieces(kind: gl.constexpr, N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr):
    """Two slots of latents: left columns, rope, right columns."""
    wide: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, N, HALF], kind)
    narrow: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, N, BLOCK_P], kind)
    return (gl.allocate_shared_memory(kind, [2, 1, N, HALF], wide),
            gl.allocate_shared_memory(kind, [2, 1, N, BLOCK_P], narrow),
            gl.allocate_shared_memory(kind, [2, 1, N, HALF], wide))


@gluon.jit
def room_for_queries(kind: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr, M: gl.constexpr,
                     BLOCK_H: gl.constexpr):
    """Of M queries: left and right columns, and rope."""
    half: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, M // BLOCK_H, BLOCK_H, HALF], kind)
    rest: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, M // BLOCK_H, BLOCK_H, BLOCK_P], kind)
    return (gl.allocate_shared_memory(kind, [2, 1, M // BLOCK_H, BLOCK_H, HALF], half),
            gl.allocate_shared_memory(kind, [1, M // BLOCK_H, BLOCK_H, BLOCK_P], rest))


@gluon.jit
def barriers(ARRIVALS: gl.constexpr, READERS: gl.constexpr):
    """full, where a piece has ARRIVALS, empty, and those between the warps; READERS are told of an item."""
    full = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())
    between = gl.allocate_shared_memory(gl.int64, [16, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(6):
        mbarrier.init(full.index(at), count=ARRIVALS)
        mbarrier.init(empty.index(at), count=1)
    for at in gl.static_range(1, FREE):
        mbarrier.init(between.index(at), count=1)
    mbarrier.init(between.index(READY), count=2)
    mbarrier.init(between.index(FREE), count=READERS)
    return full, empty, between


@gluon.jit
def common(kind: gl.constexpr, N: gl.constexpr, HALF: gl.constexpr, BLOCK_P: gl.constexpr, BLOCK_H: gl.constexpr,
           ARRIVALS: gl.constexpr):
    """Queries in left and right columns, and rope; barriers; weights of even and of odd tiles; statistics; messages.

    The weights of odd tiles lie where the rope part of the queries was, N = BLOCK_P. The block may be here before the kernel
    ahead of it has ended: nothing is read until it has.
    """
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, N], kind)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    queries = room_for_queries(kind, HALF, BLOCK_P, ROWS, BLOCK_H)
    b_p = (gl.allocate_shared_memory(kind, [ROWS, N], square), queries[1].reshape([ROWS, BLOCK_P]))
    small = gl.allocate_shared_memory(gl.float32, [6, ROWS], plain)
    message = gl.allocate_shared_memory(gl.int32, [FIELDS, 1], plain)
    bars = barriers(ARRIVALS, 2)
    fence_async_shared()
    gdc_wait()
    return queries, bars, b_p, small, message


@gluon.jit
def ask(descs, queries, ready, place):
    """The warps that load: queries of the item at place = (b, h0, i0) are on their way to barrier `ready`."""
    d_latent, d_rope = descs
    HALF: gl.constexpr = queries[0].shape[4]
    b, h0, i0 = place
    mbarrier.expect(ready, 2 * d_latent.block_type.nbytes + d_rope.block_type.nbytes)
    tma.async_copy_global_to_shared(d_latent, [b, i0, h0, 0], ready, queries[0].index(0))
    tma.async_copy_global_to_shared(d_rope, [b, i0, h0, 0], ready, queries[1])
    tma.async_copy_global_to_shared(d_latent, [b, i0, h0, HALF], ready, queries[0].index(1))


@gluon.jit
def ask_again(descs, queries, bars, first, likely, sizes, BLOCK_H: gl.constexpr):
    """The warps that load: the first item's queries, where those of another were asked for EARLY, once these are there."""
    if first != likely:
        mbarrier.wait(bars[2].index(EARLY), 0)
        ask(descs, queries, bars[2].index(READY), place_of(first, sizes, BLOCK_H))
    else:
        mbarrier.arrive(bars[2].index(READY))


@gluon.jit
def begin(descs, queries, message, bars, turn, numbers):
    """The warps that load: an item's numbers, once nobody needs those of the item before, and queries, but of the first."""
    mbarrier.wait(bars[2].index(FREE), turn % 2 ^ 1)
    tell(message, numbers)
    mbarrier.arrive(bars[2].index(READY))
    if turn > 0:
        ask(descs, queries, bars[2].index(READY), (numbers[0], numbers[1], numbers[2]))


@gluon.jit
def hear(message, bars, turn):
    """A warpgroup that multiplies: an item's place, first, begin, last and count, once these and its queries are there."""
    mbarrier.wait(bars[2].index(READY), turn % 2)
    mbarrier.wait(bars[2].index(EARLY), 0)
    place = (told(message, 0), told(message, 1), told(message, 2))
    return place, told(message, 3), told(message, 4), told(message, 5), told(message, 6)
