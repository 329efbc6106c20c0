"""Which rows and keys a block works on: the schedule of row tiles, the hull of rows, the keys of a tile.

A row tile is BLOCK_M queries of one head. Items of work are numbered so that the longest come first: sections of
SECTION heads, whose K and V stay in L2 together; within a section the last rows first, which under a causal mask see most.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..hooks import HAS_HI, HAS_LO, hull_hi, hull_lo

WARPGROUPS = gl.constexpr(2)


@gluon.jit
def slot(use, STAGES: gl.constexpr):
    """Slot and phase of a use of a ring."""
    return use % STAGES, use // STAGES % 2


@gluon.jit
def rounds(work):
    """How many items this block takes. Blocks take turns, forth in even rounds and back in odd ones: sums come out even."""
    blocks = gl.num_programs(0)
    whole = work // blocks
    place = gl.where(whole % 2 == 0, gl.program_id(0), blocks - 1 - gl.program_id(0))
    return whole + (place < work % blocks).to(gl.int32)


@gluon.jit
def item(turn, H, tiles, section, BLOCK_M: gl.constexpr):
    """b, h and first row of this block's item in this turn."""
    blocks = gl.num_programs(0)
    at = turn * blocks + gl.where(turn % 2 == 0, gl.program_id(0), blocks - 1 - gl.program_id(0))
    rest = at % (tiles * section)
    head = at // (tiles * section) * section + rest % section
    return head // H, head % H, (tiles - 1 - rest // section) * BLOCK_M


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
def key_range(b, h, row, T, S, env, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """begin and end of the keys that some row sees, the first key of their tiles, and how many tiles, at least 1."""
    begin = 0
    end = S
    if HAS_LO or HAS_HI:
        layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [gl.num_warps(), 1], [1, 0])
        i = gl.minimum(row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, layout)), T - 1)[:, None]      # [M, 1]
        lo, hi = hull(b, h, i, S, env)
        if HAS_LO:
            begin = least(gl.where(lo < hi, lo, S))
        end = most(gl.where(lo < hi, hi, 0))
    first = begin // BLOCK_N * BLOCK_N
    return begin, end, first, gl.maximum((end - first + BLOCK_N - 1) // BLOCK_N, 1)
