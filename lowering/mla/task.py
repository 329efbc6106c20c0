"""What a block has to do for an item, found by the warps that load: which keys, and the numbers they tell the others"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .line import segment_of, slot_of
from .rows import CHOSEN, live_of, place_of


@gluon.jit
def task_of(item, plan, sizes, env, N: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_T: gl.constexpr, BLOCK_H: gl.constexpr):
    """Its segment (`line.py`), the keys [start, end) that some row sees, and the `FIELDS` numbers of `rows.py`."""
    place = place_of(item, sizes, BLOCK_H)
    start, end, above, below = live_of(place, sizes, env, BLOCK_H)
    segment = segment_of(item, (start, end), plan, sizes, env, N, BLOCK_B, BLOCK_T, BLOCK_H)
    part, parts, _holder, begin, last, first, count = segment
    if CHOSEN:
        begin = start                                               # of keys; the segment's are places in a row of tokens
    else:
        below = gl.minimum(below, last)
    return segment, (start, end), (
        place[0], place[1], place[2], first, begin, last, count, below, above,
        slot_of(item, part, parts, sizes, BLOCK_B, BLOCK_H), part, plan[5] - 1 - item)
