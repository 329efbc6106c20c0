"""Which tile a program asks for before it knows its part

The lengths are a read of memory away, and nothing is on its way until they are there. Where each item has one program to
itself if the line is even, a program asks for the first tile of its item meanwhile; if the line is not even, it passes over it.

A program may be on its processor before the kernel ahead has ended, its memory shared out and its barriers made.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..hooks import HAS_LO


@gluon.jit
def await_others():
    """Until the kernels ahead have ended nothing is read or written; the kernel after this one may do the same."""
    gdc_launch_dependents()
    gdc_wait()


@gluon.jit
def asked_early(part, B, items, FEW):
    """Whether this program does: the first tile is at key 0, and right if the line is even."""
    if HAS_LO:
        return part < 0
    else:
        return (FEW == 1) & (part < B * items)


@gluon.jit
def pass_over(bars):
    """The first use of both rings, a tile of another part."""
    for ring in gl.static_range(2):
        mbarrier.wait(bars[ring][0].index(0), 0)
        mbarrier.arrive(bars[ring][1].index(0))
