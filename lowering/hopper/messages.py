"""How the roles of a block talk: the items of work, in a ring of their own (`rings.py`), and whose turn it is

Items. The planner sends each as eight int32: b, h, first row; begin, end, the keys that some row sees; how many tiles of keys
there are, `edges` of them, which come first, to be masked, and `top` of these at the end of the range. No tiles: no more items.
`wanted` says that the loader is nearly done: items are drawn late, so that whoever is done first takes the next.
Turns. Warpgroup w multiplies when the one before has left it the turn, at a named barrier of the two.
Barriers of PTX by number: below 8 Triton's; 8 to 10 turns; 11 to 14 values made clean; 15 the lanes of the planner.
"""

from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .rings import ring
from .tiles import slot

ITEMS = gl.constexpr(4)
CLEANED = gl.constexpr(11)


@gluon.jit
def channel(READERS: gl.constexpr):
    """The ring of items: memory, full, empty, wanted."""
    full, empty = ring(ITEMS, READERS)
    wanted = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(wanted, count=1)
    return gl.allocate_shared_memory(gl.int32, [ITEMS, 32], gl.SwizzledSharedLayout(1, 1, 1, [0])), full, empty, wanted


@gluon.jit
def send(items, n, fields):
    """The n-th item, eight numbers, into a slot that is free: of 32, one a lane."""
    buf, full, _empty, _wanted = items
    at = n % ITEMS
    o = gl.arange(0, 32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    message = o * 0
    for field in gl.static_range(8):
        message = gl.where(o == field, fields[field], message)
    buf.index(at).store(message)
    # One lane says that all have written. Triton has them meet as a warp before, which no tool takes for a barrier.
    gl.inline_asm_elementwise("bar.sync 15, 32; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    mbarrier.arrive(full.index(at))


@gluon.jit
def receive(items, n):
    """The eight numbers of the n-th item."""
    buf, full, _empty, _wanted = items
    at, phase = slot(n, ITEMS)
    mbarrier.wait(full.index(at), phase)
    layout: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    message = buf.index(at).slice(0, 8, 0).load(layout)
    return (field(message, 0), field(message, 1), field(message, 2), field(message, 3),
            field(message, 4), field(message, 5), field(message, 6), field(message, 7))


@gluon.jit
def field(message, at: gl.constexpr):
    """One number of eight, which every thread holds."""
    return gl.sum(gl.where(gl.arange(0, 8, message.type.layout) == at, message, 0), 0)


@constexpr_function
def named(operation, barrier):
    """PTX: at barrier 8 + `barrier`, which two warpgroups share."""
    return f"{operation} {8 + barrier}, 256; mov.u32 $0, 0;"


@gluon.jit
def take_turn(wg: gl.constexpr):
    gl.inline_asm_elementwise(named("bar.sync", wg), "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def leave_turn(wg: gl.constexpr, WARPGROUPS: gl.constexpr):
    """To the warpgroup after wg."""
    gl.inline_asm_elementwise(named("bar.arrive", (wg + 1) % WARPGROUPS), "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@constexpr_function
def at_given(operation, warpgroups):
    """PTX: at a barrier whose number is an argument, which so many warpgroups share."""
    return f"{operation} $1, {128 * warpgroups}; mov.u32 $0, 0;"


@gluon.jit
def say_clean(at, WARPGROUPS: gl.constexpr):
    """To the other warpgroups: a slot of v is clean."""
    gl.inline_asm_elementwise(at_given("bar.arrive", WARPGROUPS), "=r,r", [at + CLEANED], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def await_clean(at, WARPGROUPS: gl.constexpr):
    gl.inline_asm_elementwise(at_given("bar.sync", WARPGROUPS), "=r,r", [at + CLEANED], dtype=gl.int32, is_pure=False, pack=1)
