"""In what order a program meets the tiles of its part, and which tile it asks for before it knows its part

Programs that walk items of equal lengths from their first tiles on ask for addresses a power of two apart all the way, and so
for the same few banks of the memory. Each begins, after the first tile, at a place of its own and goes round.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

STAGGER = gl.constexpr(True)
EARLY = gl.constexpr(True)


@gluon.jit
def met(t, count, seed):
    """The t-th of `count` tiles: the first, then the others from a place that follows from `seed`."""
    if STAGGER:
        others = count - 1
        at = t - 1 + ((seed * 2531 & 4095) * others >> 12)
        return gl.where(t == 0, 0, 1 + gl.where(at >= others, at - others, at))
    else:
        return t


@gluon.jit
def asked_early(part, B, items, FEW, HAS_LO: gl.constexpr):
    """Whether a program asks for the first tile of its item before it has the lengths: right if the line is even."""
    if EARLY and not HAS_LO:
        return (FEW == 1) & (part < B * items)
    else:
        return part < 0
