"""Rings of tiles in shared memory, and the barriers of their slots

A ring has two barriers per slot, `full` and `empty`. Use n is slot n % STAGES, in phase n // STAGES % 2 (`tiles.slot`): who
reads waits for full at the phase, who writes for empty at the other, which a new barrier lets pass.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def ring(STAGES: gl.constexpr, READERS: gl.constexpr):
    """full and empty, with one arrival and one of each reader."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(STAGES):
        mbarrier.init(full.index(at), count=1)
        mbarrier.init(empty.index(at), count=READERS)
    return full, empty


@gluon.jit
def space(desc, STAGES: gl.constexpr):
    """A ring of tiles of a descriptor [STAGES, 1, 1, rows, columns]."""
    ROWS: gl.constexpr = desc.block_type.shape[2]
    COLUMNS: gl.constexpr = desc.block_type.shape[3]
    return gl.allocate_shared_memory(desc.dtype, [STAGES, 1, 1, ROWS, COLUMNS], desc.layout)


@gluon.jit
def flat(buf, at):
    """Slot `at` of a ring [STAGES, 1, 1, rows, columns] as [rows, columns]."""
    return buf.index(at).reshape([buf.shape[3], buf.shape[4]])
