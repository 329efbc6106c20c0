"""What the Hopper kernels share: slots of a ring, the hull of rows."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import HAS_HI, HAS_LO, hull_hi, hull_lo


@gluon.jit
def slot(use, STAGES: gl.constexpr):
    """Slot and phase of a use of a ring."""
    return use % STAGES, use // STAGES % 2


@gluon.jit
def hull(b, h, i, S, env):
    """Visible keys of each row, lo and hi [M, 1] int32, within [0, S]; i [M, 1]."""
    lo = i * 0
    hi = i * 0 + S
    if HAS_LO:
        lo = gl.minimum(gl.maximum(lo + hull_lo(b, h, i, env), 0), S).to(gl.int32)
    if HAS_HI:
        hi = gl.minimum(gl.maximum(i * 0 + hull_hi(b, h, i, env), 0), S).to(gl.int32)
    return lo, hi


@gluon.jit
def least(x):
    return gl.min(gl.min(x, 1), 0)


@gluon.jit
def most(x):
    return gl.max(gl.max(x, 1), 0)


@gluon.jit
def uniform(x):
    """An int32 that all threads of a warp have alike, which the assembler cannot know: to a register of the warp's own.

    TMA takes its coordinates from such; branches on them need not reckon with threads that part.
    """
    return gl.inline_asm_elementwise("shfl.sync.idx.b32 $0, $1, 0, 31, 0xFFFFFFFF;", "=r,r", [x.to(gl.int32)], dtype=gl.int32,
                                     is_pure=True, pack=1)
