"""Pieces of a tile of latents by TMA, and where the tile lies"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..hopper.tiles import uniform
from .rows import PAGE


@gluon.jit
def page_of(pages, strides, item, j0, m_any, IN_PAGES: gl.constexpr):
    """The page of key j0 of an item, where m_any; without pages, the item."""
    if IN_PAGES:
        at = pages + gl.cast(item, gl.int64) * strides[0] + (j0 // PAGE).to(gl.int64) * strides[1]
        return uniform(gl.load(at, mask=m_any, other=0))
    else:
        return item


@gluon.jit
def copy_piece(piece: gl.constexpr, descs, at, rings, bars, slot, phase):
    """One piece of a tile, at = (block, row), once its slot is empty."""
    HALF: gl.constexpr = rings[0].shape[3]
    bar = bars[0].index(2 * piece + slot)
    mbarrier.wait(bars[1].index(2 * piece + slot), phase)
    mbarrier.expect(bar, descs[piece % 2].block_type.nbytes)
    column: gl.constexpr = HALF if piece == 2 else 0
    tma.async_copy_global_to_shared(descs[piece % 2], [at[0], at[1], column], bar, rings[piece].index(slot))
